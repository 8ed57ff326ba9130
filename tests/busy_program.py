"""A program that makes as many different tracepoints fire as it can: files, network, processes, signals, memory, timers.

    python3 busy_program.py DIRECTORY

Whatever the machine does not let it do, it leaves out. It changes nothing outside DIRECTORY.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from contextlib import suppress

LIBC = ctypes.CDLL(None, use_errno=True)


def files(directory: str) -> None:
    path = os.path.join(directory, "file")
    with open(path, "wb") as file:
        file.write(os.urandom(1 << 16))
        file.flush()
        os.fsync(file.fileno())
    opened = os.open(path, os.O_RDWR)
    os.pread(opened, 10, 0)
    os.pwrite(opened, b"x", 0)
    os.lseek(opened, 10, os.SEEK_SET)
    os.ftruncate(opened, 100)
    fcntl.flock(opened, fcntl.LOCK_EX)
    fcntl.lockf(opened, fcntl.LOCK_EX)
    fcntl.lockf(opened, fcntl.LOCK_UN)
    with suppress(OSError):
        os.posix_fallocate(opened, 0, 1 << 16)
    os.posix_fadvise(opened, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(opened)
    os.link(path, path + "2")
    os.symlink(path, path + "3")
    os.rename(path + "2", path + "4")
    os.mkdir(path + "5")
    os.mkfifo(path + "6")
    with suppress(OSError):
        os.setxattr(path, "user.a", b"1")
        os.getxattr(path, "user.a")
        os.listxattr(path)
    os.chmod(path, 0o600)
    os.utime(path)
    os.stat(path)
    os.statvfs(path)
    os.access(path, os.R_OK)
    os.listdir(directory)
    os.chdir(directory)
    os.umask(0o22)
    for left in ("", "3", "4", "6"):
        os.unlink(path + left)
    os.rmdir(path + "5")


def network() -> None:
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with suppress(OSError):
            stream(family, address)
            datagrams(family, address)
    one, other = socket.socketpair()
    one.send(b"1")
    other.recv(1)
    one.close()
    other.close()


def stream(family: int, address: str) -> None:
    with socket.socket(family) as server, socket.socket(family) as client:
        server.bind((address, 0))
        server.listen()
        client.connect(server.getsockname()[:2])
        accepted, _ = server.accept()
        with accepted:
            client.sendall(b"x" * 5000)
            received = 0
            while received < 5000:
                received += len(accepted.recv(9999))
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with suppress(OSError):
            client.send(b"x")
            client.recv(1)
    with socket.socket(family) as nobody, suppress(OSError):
        nobody.connect((address, 1))


def datagrams(family: int, address: str) -> None:
    with socket.socket(family, socket.SOCK_DGRAM) as receiver:
        receiver.bind((address, 0))
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        for _ in range(20):
            receiver.sendto(b"x" * 500, receiver.getsockname()[:2])
        port = receiver.getsockname()[1]
    with socket.socket(family, socket.SOCK_DGRAM) as lost, suppress(OSError):
        lost.connect((address, port))
        lost.send(b"x")
        lost.send(b"x")


def processes() -> None:
    subprocess.run(["/bin/sh", "-c", "ls / > /dev/null; true & wait; exec true"], check=False)
    for status in (0, 3):
        child = os.fork()
        if child == 0:
            os.nice(1)
            os._exit(status)
        os.waitpid(child, 0)
    threads = [threading.Thread(target=time.sleep, args=(0.01,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    allowed = os.sched_getaffinity(0)
    for cpu in sorted(allowed):
        os.sched_setaffinity(0, {cpu})
    os.sched_setaffinity(0, allowed)
    os.sched_yield()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.getrusage(resource.RUSAGE_SELF)
    child = os.fork()
    if child == 0:
        ctypes.string_at(0)
    os.waitpid(child, 0)


def signals() -> None:
    for number in (signal.SIGALRM, signal.SIGVTALRM, signal.SIGUSR1):
        signal.signal(number, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
    time.sleep(0.02)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.setitimer(signal.ITIMER_VIRTUAL, 0.005)
    deadline = time.monotonic() + 0.02
    while time.monotonic() < deadline:
        pass
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    os.kill(os.getpid(), signal.SIGUSR1)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    os.kill(os.getpid(), signal.SIGUSR2)
    signal.sigpending()


def memory(directory: str) -> None:
    with mmap.mmap(-1, 4 << 20) as area:
        for place in range(0, len(area), mmap.PAGESIZE):
            area[place] = 1
        area.madvise(mmap.MADV_DONTNEED)
    with open(os.path.join(directory, "mapped"), "wb+") as file:
        file.truncate(1 << 16)
        with mmap.mmap(file.fileno(), 1 << 16) as area:
            area[5] = 1
            area.flush()
    os.unlink(os.path.join(directory, "mapped"))
    LIBC.mlock(ctypes.create_string_buffer(8192), 4096)


def waiting() -> None:
    reading, writing = os.pipe()
    select.select([reading], [], [], 0.005)
    with select.epoll() as several:
        several.register(reading, select.EPOLLIN)
        os.write(writing, b"x")
        several.poll(0.005)
    one = select.poll()
    one.register(reading, select.POLLIN)
    one.poll(1)
    os.close(reading)
    os.close(writing)
    LIBC.prctl(15, b"renamed", 0, 0, 0)  # PR_SET_NAME
    time.sleep(0.001)
    os.getpgid(0)
    os.getrandom(8)
    os.uname()
    os.getgroups()
    os.sysconf("SC_NPROCESSORS_ONLN")


def main() -> None:
    directory = sys.argv[1]
    files(directory)
    network()
    processes()
    signals()
    memory(directory)
    waiting()


if __name__ == "__main__":
    main()

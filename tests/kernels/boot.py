"""Boot another kernel in an emulated machine, on a throw-away view of this machine's files, and run a command there.

    python tests/kernels/boot.py 6.12 uname -r
    python tests/kernels/boot.py 6.1 .venv/bin/python -m ktap -e 'trace probe:vfs_read { exit() }'
    python tests/kernels/boot.py 6.12-arm64 python3 -m ktap doctor

The kernels are Debian's, for clouds; they are downloaded once, to the cache directory. The machine is
qemu's, by software alone, so it runs anywhere and slowly: nothing can be timed in it. It sees this
machine's root directory read-only (virtiofs) below a layer of memory that takes all writes (overlay), and
runs the command in the directory it was started from, as root, with a few of the environment's variables.
A machine of another architecture sees one of its own (arm64.py), and of this machine's that directory alone.
What the command prints comes out as it is printed; the exit status is the command's, or FAILED where the
machine did not get so far.

Needs root (virtiofsd changes its root directory) and Debian's packages of the emulator.
"""

from __future__ import annotations

import fcntl
import lzma
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple, Sequence

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from kernels import arm64


class Architecture(NamedTuple):
    """What is emulated."""

    qemu: str
    package: str
    """Debian's package with it."""
    hardware: tuple[str, ...]
    console: str


X86 = Architecture("qemu-system-x86_64", "qemu-system-x86", ("-M", "q35", "-cpu", "max"), "ttyS0")
ARM = Architecture("qemu-system-aarch64", "qemu-system-arm", ("-M", "virt", "-cpu", "max,pauth-impdef=on"), "ttyAMA0")
"""The signatures of return addresses (PAC) are made in a way of qemu's own: the processor's takes an emulator long."""


class Release(NamedTuple):
    """A kernel that can be booted."""

    package: str
    """Debian's package that depends on the newest one."""
    architecture: Architecture = X86


KERNELS = {"6.12": Release("linux-image-6.12-cloud-amd64"), "6.1": Release("linux-image-cloud-amd64")}
ARM_KERNELS = {
    "6.12-arm64": Release("linux-image-6.12-cloud-arm64", ARM),
    "6.1-arm64": Release("linux-image-cloud-arm64", ARM),
    "6.12-arm64-16k": Release("linux-image-6.12-arm64-16k", ARM),
}
ALL_KERNELS = {**KERNELS, **ARM_KERNELS}
COMMON_PACKAGE = "qemu-system-common"
"""What all emulators need."""
SHELL_PACKAGE = "busybox-static"
"""Where the first program that the machine runs comes from."""
DIES_TOO = ("setpriv", "--pdeathsig", "KILL")
"""In front of a command that must not outlive this program."""
VIRTIOFSD = "/usr/lib/qemu/virtiofsd"
MODULES = (
    *("virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_console"),
    *("fuse", "virtiofs", "overlay"),
)
"""What has to be loaded before the root directory is there, in this order; other parts are built in."""
APT = ("apt-get", "--quiet=2", "-o", "Acquire::http::Timeout=30", "-o", "Acquire::Retries=1")
PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "NO_COLOR")
"""Variables of the environment that the command sees."""
MOUNTS = (
    *("proc:/proc", "sysfs:/sys", "devtmpfs:/dev", "tmpfs:/run", "tracefs:/sys/kernel/tracing"),
    *("debugfs:/sys/kernel/debug", "bpf:/sys/fs/bpf", "cgroup2:/sys/fs/cgroup"),
)
"""Type and place of what is mounted over this machine's directories."""
FAILED = 255
TIMEOUT_S = 300
START_S = 10

INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev; mount -t proc proc /proc; mount -t sysfs sys /sys
for module in $(cat /modules/order); do insmod /modules/$module; done
mkdir -p /lower /upper /root
mount -t virtiofs -o ro root /lower && mount -t tmpfs upper /upper || poweroff -f
layer() { mkdir -p /upper/$2 /upper/work-$2 $3; mount -t overlay -o lowerdir=$1,upperdir=/upper/$2,workdir=/upper/work-$2 $2 $3; }
read files < /files; read directory < /directory
layer /lower$files new /root
[ -z "$files" ] || layer /lower$directory project /root$directory
for pair in @MOUNTS@; do mount -t ${pair%%:*} ${pair%%:*} /root${pair#*:}; done
ln -s /proc/self/fd /root/dev/fd; mkdir -p /root/dev/shm; mount -t tmpfs shm /root/dev/shm
mkdir -p /root/dev/pts; mount -t devpts pts /root/dev/pts
ip link set lo up
port() { for one in /sys/class/virtio-ports/*; do [ "$(cat $one/name)" = $1 ] && echo /dev/${one##*/}; done; }
[ -e /root/etc/ld.so.cache ] || chroot /root /sbin/ldconfig
cp /command /root/run/command
chroot /root /bin/sh /run/command </dev/null >$(port output) 2>&1
echo $? >$(port status)
sync; poweroff -f
"""
"""The machine's first program: it puts the root directory together and runs the command in it."""


class Kernel(NamedTuple):
    """A kernel that has been fetched."""

    architecture: Architecture
    image: Path
    modules: tuple[Path, ...]
    """Those of MODULES that it has, in that order."""
    shell: Path
    files: Path
    """The root directory."""


class Unavailable(Exception):
    """Kernels cannot be booted here; the message says why."""


def missing(architecture: Architecture) -> str:
    """What booting kernels lacks on this machine, empty where nothing."""
    if os.geteuid() != 0:
        return "booting another kernel needs root"
    if architecture is X86 and os.uname().machine != "x86_64":
        return "this machine's files are none for an x86-64 kernel"
    lacking = [path for path in (architecture.qemu, VIRTIOFSD) if shutil.which(path) is None]
    packages = f"{architecture.package} {COMMON_PACKAGE}"
    return f"no {' and no '.join(lacking)} (apt-get install {packages})" if lacking else ""


# -- fetching ---------------------------------------------------------------------------------------


def cache_directory() -> Path:
    """Where kernels are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "ktap" / "kernels"


def fetch(release: str) -> Kernel:
    """The kernel of a release, downloaded if it is not in the cache. Raises Unavailable."""
    cache_directory().mkdir(parents=True, exist_ok=True)
    with open(cache_directory() / "lock", "w") as lock:  # tests run at the same time
        fcntl.flock(lock, fcntl.LOCK_EX)
        package, architecture = ALL_KERNELS[release]
        files, environment = Path("/"), dict(os.environ)
        try:
            if architecture is ARM:
                files = arm64.files(cache_directory() / "arm64")
                environment = arm64.configured(cache_directory() / "arm64")
        except arm64.Failed as error:
            raise Unavailable(str(error)) from error
        own = cache_directory() / ("shell" if architecture is X86 else "shell-arm64")
        shell = _unpacked(own, SHELL_PACKAGE, environment, "./bin/busybox")
        directory = _unpacked(
            cache_directory() / release, package, environment, "./boot/vmlinuz-*", *_module_patterns()
        )
    images = sorted(directory.glob("boot/vmlinuz-*"))
    found = {path.name.partition(".")[0]: path for path in directory.rglob("*.ko*")}
    modules = tuple(found[name] for name in MODULES if name in found)
    return Kernel(architecture, images[-1], modules, shell / "bin/busybox", files)


def _module_patterns() -> tuple[str, ...]:
    return tuple(f"*/{name}.ko*" for name in MODULES)


def _unpacked(directory: Path, package: str, environment: dict[str, str], *patterns: str) -> Path:
    """The files of a Debian package, or of the newest one it depends on, that fit patterns; what lacks is no error."""
    if (directory / "complete").exists():
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o777)  # apt downloads as a user of its own
        try:
            depends = _run(["apt-cache", "depends", package], place, environment)
        except Unavailable:  # perhaps nobody has asked yet what there is
            _run([*APT, "update"], place, environment)
            depends = _run(["apt-cache", "depends", package], place, environment)
        images = [line.split()[-1] for line in depends.splitlines() if "Depends: linux-image" in line]
        _run([*APT, "download", *(images or [package])], place, environment)
        archive = next(iter(Path(place).glob("*.deb")))
        _run(["sh", "-c", 'dpkg --fsys-tarfile "$0" > files.tar', str(archive)], place)
        names = _run(["tar", "--list", "--wildcards", "--file", "files.tar"], place).split("\n")
        wanted = [name for name in names if any(Path(name).match(pattern) for pattern in patterns)]
        _run(["tar", "--extract", "--file", "files.tar", "--directory", str(directory), *wanted], place)
    for path in directory.rglob("*.ko.xz"):
        path.with_suffix("").write_bytes(lzma.decompress(path.read_bytes()))
        path.unlink()
    (directory / "complete").touch()
    return directory


def _run(command: Sequence[str], directory: str, environment: dict[str, str] | None = None) -> str:
    try:
        done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True)
    except OSError as error:
        raise Unavailable(f"{command[0]}: {error.strerror}") from error
    if done.returncode:
        raise Unavailable(f"{' '.join(command[:3])}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


# -- the first files --------------------------------------------------------------------------------


def first_files(kernel: Kernel, command: str) -> bytes:
    """The machine's files before it has others: a cpio archive (initramfs) with the shell, modules, INIT and a command."""
    init = INIT.replace("@MOUNTS@", " ".join(MOUNTS))
    order = " ".join(path.name for path in kernel.modules)
    directories = [entry(name, b"", 0o40755) for name in ("bin", "dev", "proc", "sys", "modules")]
    files = [
        entry("init", init.encode(), 0o100755),
        entry("files", f"{kernel.files if kernel.files != Path('/') else ''}\n".encode(), 0o100644),
        entry("directory", f"{os.getcwd()}\n".encode(), 0o100644),
        entry("command", command.encode(), 0o100644),
        entry("bin/busybox", kernel.shell.read_bytes(), 0o100755),
        entry("modules/order", order.encode(), 0o100644),
        *(entry(f"modules/{path.name}", path.read_bytes(), 0o100644) for path in kernel.modules),
    ]
    return b"".join([*directories, *files, entry("TRAILER!!!", b"", 0)])


def entry(name: str, data: bytes, mode: int) -> bytes:
    """One file of a cpio archive. Source: Documentation/driver-api/early-userspace/buffer-format.rst."""
    path = name.encode() + b"\0"
    numbers = (0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path), 0)
    head = b"070701" + b"".join(b"%08x" % number for number in numbers) + path
    return _padded(head) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


# -- running ----------------------------------------------------------------------------------------


class Machine(NamedTuple):
    """How large the emulated machine is."""

    processors: int = 2
    memory_mib: int = 2048
    timeout_s: int = TIMEOUT_S


USUAL = Machine()


def boot(release: str, command: Sequence[str], output: BinaryIO, machine: Machine = USUAL) -> int:
    """Run a command on a kernel and pass on what it prints; its exit status. Raises Unavailable."""
    reason = missing(ALL_KERNELS[release].architecture)
    if reason:
        raise Unavailable(reason)
    kernel = fetch(release)
    with tempfile.TemporaryDirectory(prefix="ktap-kernel-", dir="/var/tmp") as place:
        job = Path(place)
        (job / "first").write_bytes(first_files(kernel, _command_text(command)))
        with open(job / "files.log", "wb") as log:
            files = subprocess.Popen(
                [*DIES_TOO, VIRTIOFSD, f"--socket-path={job}/files", "-o", "source=/,sandbox=chroot,cache=always"],
                stdout=log,
                stderr=log,
            )
        try:
            _wait_for(job / "files", files)
            return _emulate(kernel, job, output, machine)
        finally:
            files.kill()
            files.wait()


def _command_text(command: Sequence[str]) -> str:
    exports = [f"export {name}={shlex.quote(os.environ[name])}" for name in PASSED_ON if name in os.environ]
    return "\n".join([*exports, f"cd {shlex.quote(os.getcwd())}", f"exec {shlex.join(command)}\n"])


def _wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while not path.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise Unavailable(f"virtiofsd did not start: {path.with_suffix('.log').read_text().strip()}")
        time.sleep(0.02)


def _emulate(kernel: Kernel, job: Path, output: BinaryIO, machine: Machine) -> int:
    emulator = subprocess.Popen(
        [
            # With a thread for each processor some of them go on running instructions that the kernel has patched.
            *(*DIES_TOO, kernel.architecture.qemu, "-accel", "tcg,thread=single", *kernel.architecture.hardware),
            *(
                "-smp",
                str(machine.processors),
                "-m",
                f"{machine.memory_mib}M",
                "-nodefaults",
                "-display",
                "none",
                "-no-reboot",
            ),
            *("-object", f"memory-backend-memfd,id=memory,size={machine.memory_mib}M,share=on"),
            *("-numa", "node,memdev=memory"),
            *("-chardev", f"socket,id=files,path={job}/files", "-device", "vhost-user-fs-pci,chardev=files,tag=root"),
            *("-device", "virtio-serial-pci", "-serial", f"file:{job}/console"),
            *("-chardev", "file,id=output,path=/dev/stdout", "-device", "virtserialport,chardev=output,name=output"),
            *("-chardev", f"file,id=status,path={job}/status", "-device", "virtserialport,chardev=status,name=status"),
            *("-kernel", str(kernel.image), "-initrd", str(job / "first")),
            *("-append", f"quiet console={kernel.architecture.console} panic=-1 oops=panic mitigations=off"),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    assert emulator.stdout is not None
    deadline = time.monotonic() + machine.timeout_s
    try:
        os.set_blocking(emulator.stdout.fileno(), False)
        while emulator.poll() is None and time.monotonic() < deadline:
            if not _pass_on(emulator.stdout, output):
                time.sleep(0.05)
        _pass_on(emulator.stdout, output)
    finally:
        with suppress(OSError):
            emulator.kill()
        emulator.wait()
    status = (job / "status").read_text().strip()
    if status:
        return int(status)
    how = "ended before its command did" if time.monotonic() < deadline else f"took over {machine.timeout_s} s"
    console = (job / "console").read_text(errors="replace")
    output.write(f"the emulated machine {how}; its console:\n{console[-4000:]}\n".encode())
    return FAILED


def _pass_on(source: BinaryIO, output: BinaryIO) -> bool:
    """Whether there was something."""
    data = os.read(source.fileno(), 1 << 16) if _readable(source) else b""
    output.write(data)
    output.flush()
    return bool(data)


def _readable(source: BinaryIO) -> bool:
    import select

    return bool(select.select([source], [], [], 0)[0])


def main(arguments: Sequence[str]) -> int:
    """The command line: a release of ALL_KERNELS, and the command."""
    if len(arguments) < 2 or arguments[0] not in ALL_KERNELS:
        print(f"usage: boot.py {'|'.join(ALL_KERNELS)} COMMAND...", file=sys.stderr)
        return 2
    try:
        return boot(arguments[0], arguments[1:], sys.stdout.buffer)
    except Unavailable as error:
        print(f"boot.py: {error}", file=sys.stderr)
        return FAILED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

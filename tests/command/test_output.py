"""The output sink: what is written when, limits, and sinks that fail."""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import threading
from pathlib import Path
from typing import Iterator

import pytest

from vm.fault import Exit, Fault
from vm.output import BUFFER_BYTES, INTERVAL_NS, RESERVE_BYTES, Output, StampedOutput

F_SETPIPE_SZ = 1031


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, F_SETPIPE_SZ, 4 * BUFFER_BYTES)
    os.set_blocking(reader, False)
    yield reader, writer
    os.close(reader)


def taken(reader: int) -> bytes:
    """What is in the pipe now."""
    try:
        return os.read(reader, 1 << 20)
    except BlockingIOError:
        return b""


def test_a_pipe_gets_blocks(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    output = Output(writer)
    output.write(b"line\n")
    assert taken(reader) == b""
    output.write(b"x" * BUFFER_BYTES)
    assert taken(reader)[:8] == b"line\nxxx"
    output.close()


def test_a_pipe_gets_what_is_old(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    output = Output(writer)
    output.tick(INTERVAL_NS)
    output.write(b"line\n")
    assert output.waiting
    output.tick(2 * INTERVAL_NS - 1)
    assert taken(reader) == b""
    output.tick(2 * INTERVAL_NS)
    assert taken(reader) == b"line\n"
    assert not output.waiting
    output.close()


def test_closing_lets_everything_out(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    output = Output(writer)
    output.write(b"line\n")
    output.close()
    assert taken(reader) == b"line\n"
    assert output.failure is None


def test_a_terminal_gets_lines() -> None:
    master, slave = pty.openpty()
    output = Output(slave)
    output.write(b"no line ")
    os.set_blocking(master, False)
    with pytest.raises(BlockingIOError):
        os.read(master, 100)
    output.write(b"yet\n")
    assert os.read(master, 100) == b"no line yet\r\n"
    output.close()
    os.close(master)


def test_partial_writes(tmp_path: Path) -> None:
    """A pipe that is full takes a part at a time, and a descriptor that does not block refuses at times."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    data = os.urandom(3_000_000)
    received = bytearray()

    def read() -> None:
        while piece := os.read(reader, 50_000):
            received.extend(piece)

    thread = threading.Thread(target=read)
    thread.start()
    output = Output(writer)
    output.write(data)
    output.close()
    thread.join()
    os.close(reader)
    assert received == data


def test_the_limit_is_exact(tmp_path: Path) -> None:
    path = tmp_path / "out"
    output = Output(os.open(path, os.O_CREAT | os.O_WRONLY), limit_bytes=10)
    output.write(b"12345")
    output.write(b"67890")
    with pytest.raises(Fault, match="more output than the limit of 10 bytes") as caught:
        output.write(b"x")
    assert caught.value.kind == "output"
    assert path.read_bytes() == b"1234567890"
    output.write(b" and what trace_end prints\n")
    with pytest.raises(Fault):
        output.write(b"y" * RESERVE_BYTES)
    output.close()
    assert path.read_bytes() == b"1234567890 and what trace_end prints\n"


def test_the_limit_beyond_a_buffer(tmp_path: Path) -> None:
    path = tmp_path / "out"
    limit = 3 * BUFFER_BYTES + 7
    output = Output(os.open(path, os.O_CREAT | os.O_WRONLY), limit_bytes=limit)
    with pytest.raises(Fault):
        for _ in range(4 * BUFFER_BYTES):
            output.write(b"x")
    output.close()
    assert path.stat().st_size == limit


def test_the_limit_on_a_terminal() -> None:
    master, slave = pty.openpty()
    output = Output(slave, limit_bytes=6)
    output.write(b"12\n")
    output.write(b"34\n")
    with pytest.raises(Fault):
        output.write(b"5\n")
    assert os.read(master, 100) == b"12\r\n34\r\n"
    output.close()
    os.close(master)


def test_a_full_disk_ends_the_run_once() -> None:
    output = Output(os.open("/dev/full", os.O_WRONLY), "/dev/full")
    with pytest.raises(Exit) as caught:
        output.write(b"x" * (BUFFER_BYTES + 1))
    assert caught.value.status == 1
    assert output.failure is not None
    assert output.failure.errno == errno.ENOSPC
    output.write(b"y" * (BUFFER_BYTES + 1))
    output.close()


def test_a_reader_that_has_gone() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    output = Output(writer)
    output.write(b"x")
    with pytest.raises(Exit):
        output.tick(INTERVAL_NS)
    assert isinstance(output.failure, BrokenPipeError)


def test_close_keeps_the_failure() -> None:
    output = Output(os.open("/dev/full", os.O_WRONLY), "/dev/full")
    output.write(b"x")
    output.close()
    assert output.failure is not None


def test_stamps_begin_lines(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    times = iter(range(10))
    output = StampedOutput(writer, "pipe", None, lambda: b"%d " % next(times))
    output.write(b"")
    output.write(b"a\nb\n")
    output.write(b"c")
    output.write(b"d\n")
    output.write(b"\n")
    output.close()
    assert taken(reader) == b"0 a\n0 b\n1 cd\n3 \n"

"""Where a script's output goes: one buffered sink over a file descriptor.

To a terminal a line goes out as soon as it is whole; to a file or a pipe the bytes are collected and
go out when there are enough of them or when the run loop's `tick` finds them old enough. A sink that
fails (its reader has gone, the disk is full) ends the run by `Exit(1)`, once; what is written after
that is dropped, and `failure` keeps what happened for the one who reports.
"""

from __future__ import annotations

import os
from contextlib import suppress
from errno import ETIMEDOUT
from time import monotonic_ns
from typing import Callable, Optional

from vm.fault import Exit, Fault

BUFFER_BYTES = 1 << 16
"""So much is collected before it goes to a file or a pipe."""
INTERVAL_NS = 100_000_000
"""What is collected waits no longer than this for the next `tick`."""
RESERVE_BYTES = 1 << 16
"""What trace_end may still print after the limit has been hit."""


class Output:
    """A sink that counts its bytes against `limit_bytes` (None: no limit)."""

    def __init__(self, descriptor: int, name: str = "standard output", limit_bytes: Optional[int] = None) -> None:
        self.descriptor = descriptor
        self.name = name
        self.limit_bytes = limit_bytes
        self.failure: Optional[OSError] = None
        """Why the sink has stopped taking bytes."""
        self.writing_since_ns: Optional[int] = None
        """When the write that is going on began (CLOCK_MONOTONIC), None when there is none."""
        self._buffer_bytes = 0 if os.isatty(descriptor) else BUFFER_BYTES
        self._parts: list[bytes] = []
        self._left = (1 << 62) if limit_bytes is None else limit_bytes
        self._granted = self._room = min(self._buffer_bytes, self._left)
        self._flushed_ns = 0
        self._reserved = False

    def write(self, data: bytes) -> None:
        """Take bytes. Raises Fault("output") past the limit and Exit(1) when the sink has failed."""
        self._parts.append(data)
        self._room -= len(data)
        if self._room < 0:
            self._turn()

    def has_room(self, size_bytes: int) -> bool:
        """Whether so much can be written without passing the limit."""
        return self._granted - self._room + size_bytes <= self._left

    def _turn(self) -> None:
        """The buffer is full, or the sink is a terminal, or the limit is passed."""
        if self._granted - self._room > self._left:
            self._refuse()
        elif self._buffer_bytes or b"\n" in self._parts[-1]:
            self.flush()

    def _refuse(self) -> None:
        """Drop the write that passes the limit; the first time, leave room for what trace_end prints."""
        self._room += len(self._parts.pop())
        self.flush()
        if not self._reserved:
            self._reserved = True
            self._left += RESERVE_BYTES
            self._grant()
        raise Fault("output", f"more output than the limit of {self.limit_bytes} bytes", "raise it with --max-output")

    def _grant(self) -> None:
        self._granted = self._room = min(self._buffer_bytes, self._left)

    @property
    def waiting(self) -> bool:
        """True when bytes wait for the next `tick`."""
        return bool(self._parts)

    def tick(self, now_ns: int) -> None:
        """Let out what has waited for INTERVAL_NS. Raises Exit(1) when the sink has failed."""
        if now_ns - self._flushed_ns >= INTERVAL_NS:
            self._flushed_ns = now_ns
            if self._parts:
                self.flush()

    def flush(self) -> None:
        """Let out everything. Raises Exit(1) when the sink fails; does nothing once it has."""
        data = b"".join(self._parts)
        self._parts.clear()
        self._left -= len(data)
        self._grant()
        if data and self.failure is None:
            try:
                self.writing_since_ns = monotonic_ns()
                _write_all(self.descriptor, data)
            except OSError as error:
                self.failure = error
                raise Exit(1) from None
            finally:
                self.writing_since_ns = None

    def give_up(self, patience_ns: int) -> None:
        """End a write that has taken longer than that, because nobody reads; for a signal handler."""
        since_ns = self.writing_since_ns
        if since_ns is not None and monotonic_ns() - since_ns > patience_ns:
            raise TimeoutError(ETIMEDOUT, "nobody reads")

    def close(self) -> None:
        """Let out everything and close the descriptor, never raising: see `failure`."""
        with suppress(Exit):  # kept in `failure`
            self.flush()
        try:
            os.close(self.descriptor)
        except OSError as error:
            self.failure = self.failure or error


class StampedOutput(Output):
    """A sink that begins every line with what `stamp` returns (the time of the event, say)."""

    def __init__(
        self,
        descriptor: int,
        name: str,
        limit_bytes: Optional[int],
        stamp: Callable[[], bytes],
    ) -> None:
        super().__init__(descriptor, name, limit_bytes)
        self._stamp = stamp
        self._line_begins = True

    def write(self, data: bytes) -> None:
        """Take bytes, a stamp before each line that begins in them."""
        if not data:
            return
        stamp = self._stamp()
        body = data[:-1].replace(b"\n", b"\n" + stamp) + data[-1:]
        super().write(stamp + body if self._line_begins else body)
        self._line_begins = data.endswith(b"\n")


def _write_all(descriptor: int, data: bytes) -> None:
    """Write everything, however little the kernel takes at a time. Raises OSError."""
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:
            _wait_writable(descriptor)


def _wait_writable(descriptor: int) -> None:
    """Wait until a descriptor that does not block (one shared with another program) takes bytes again."""
    import select

    select.select((), (descriptor,), ())

"""What only the kernel can tell of an address: the constant string there, and the hash `%p` shows for it.

Both are asked of small programs that bpf(2) runs (BPF_PROG_TYPE_SYSCALL, Linux 5.14): the hash is the
kernel's own `bpf_snprintf("%p")`, so its secret key stays where it is. They leave their answer in a map.
Sources: linux/bpf.h; lib/vsprintf.c (ptr_to_id).
"""

from __future__ import annotations

import os
import struct
from typing import Optional

from ktap import kernel

SYSCALL, SLEEPABLE = 31, 16
"""BPF_PROG_TYPE_SYSCALL, BPF_F_SLEEPABLE."""
READ_ONLY_PROGRAM = 1 << 7
"""BPF_F_RDONLY_PROG."""
SNPRINTF, PROBE_READ_KERNEL, PROBE_READ_KERNEL_STR, CURRENT_TASK = 165, 113, 115, 35
"""Numbers of BPF helpers."""
ANSWER_BYTES = 256
MASK = (1 << 64) - 1
MOST_KNOWN = 1 << 16
"""Answers kept."""


def _instruction(code: int, target: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return struct.pack("<BBhi", code, target | source << 4, offset, value)


def _map_value(register: int, fd: int) -> bytes:
    """register = address of a map's first value."""
    return _instruction(0x18, register, 2, 0, fd) + bytes(8)


_LOAD_ADDRESS = _instruction(0x79, 6, 1)
"""r6 = the address in the context."""
_RETURN = _instruction(0xB7, 0, 0, 0, 0) + kernel.EXIT


def _move(register: int, value: int) -> bytes:
    return _instruction(0xB7, register, 0, 0, value)


class KernelData:
    """Answers about addresses, kept once they are known. Raises OSError where the kernel cannot be asked."""

    def __init__(self) -> None:
        self._open: list[int] = []
        try:
            self._answer = self._keep(kernel.create_map(kernel.ARRAY, "ktap_answer", 4, ANSWER_BYTES, 1))
            text = self._keep(kernel.create_map(kernel.ARRAY, "ktap_format", 4, 8, 1, READ_ONLY_PROGRAM))
            kernel.update(text, bytes(4), b"%p".ljust(8, b"\0"))
            kernel.freeze(text)
            self._hash = self._load(
                _LOAD_ADDRESS
                + _instruction(0x7B, 10, 6, -8)  # on the stack, where the helper takes it from
                + _map_value(1, self._answer)
                + _move(2, ANSWER_BYTES)
                + _map_value(3, text)
                + _instruction(0xBF, 4, 10)
                + _instruction(0x07, 4, 0, 0, -8)
                + _move(5, 8)
                + _instruction(0x85, 0, 0, 0, SNPRINTF)
                + _RETURN
            )
            self._string = self._load(self._reading(ANSWER_BYTES, PROBE_READ_KERNEL_STR))
        except OSError:
            self.close()
            raise
        self._pointers: dict[int, bytes] = {}
        self._strings: dict[int, Optional[bytes]] = {}

    def _reading(self, size_bytes: int, helper: int) -> bytes:
        """A program that reads memory at the address into the answer."""
        return (
            _LOAD_ADDRESS
            + _map_value(1, self._answer)
            + _move(2, size_bytes)
            + _instruction(0xBF, 3, 6)
            + _instruction(0x85, 0, 0, 0, helper)
            + kernel.EXIT
        )

    def _keep(self, fd: int) -> int:
        self._open.append(fd)
        return fd

    def _load(self, code: bytes) -> int:
        return self._keep(kernel.load(SYSCALL, code, flags=SLEEPABLE))

    def close(self) -> None:
        """Let go of the programs and maps. Safe to call twice."""
        while self._open:
            os.close(self._open.pop())

    def word(self, address: int) -> Optional[int]:
        """The 8 bytes at an address as a number, None where nothing can be read."""
        program = self._load(self._reading(8, PROBE_READ_KERNEL))
        try:
            result, answer = self._run(program, address)
        finally:
            os.close(self._open.pop())
        return struct.unpack_from("=Q", answer)[0] if result >= 0 else None

    def task(self) -> int:
        """The address of this thread's `struct task_struct`."""
        store = _instruction(0xBF, 7, 0) + _map_value(1, self._answer) + _instruction(0x7B, 1, 7)
        program = self._load(_instruction(0x85, 0, 0, 0, CURRENT_TASK) + store + _RETURN)
        try:
            (address,) = struct.unpack_from("=Q", self._run(program, 0)[1])
        finally:
            os.close(self._open.pop())
        return int(address)

    def _ask(self, program: int, address: int) -> tuple[int, bytes]:
        """The program's result (signed), and its answer up to the first NUL."""
        result, answer = self._run(program, address)
        return result, answer.partition(b"\0")[0]

    def _run(self, program: int, address: int) -> tuple[int, bytes]:
        """The program's result (signed), and its answer."""
        result = kernel.test_run(program, struct.pack("=Q", address & MASK))
        answer = kernel.lookup(self._answer, bytes(4), ANSWER_BYTES) or b""
        return result - (1 << 32) if result >> 31 else result, answer

    def pointer(self, address: int) -> bytes:
        """What `%p` shows."""
        known = self._pointers.get(address)
        if known is None:
            known = self._ask(self._hash, address)[1]
            if len(self._pointers) >= MOST_KNOWN:
                self._pointers.clear()
            self._pointers[address] = known
        return known

    def string(self, address: int) -> Optional[bytes]:
        """The first 255 bytes of the C string at an address, None where nothing can be read."""
        if address not in self._strings:
            if len(self._strings) >= MOST_KNOWN:
                self._strings.clear()
            result, text = self._ask(self._string, address)
            self._strings[address] = text if result >= 0 else None
        return self._strings[address]

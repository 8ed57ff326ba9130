"""Where the kernel keeps its array of `struct page`: what `vmemmap_base` is in print formats on x86-64.

The variable has no symbol and is random with each boot (CONFIG_RANDOMIZE_MEMORY). But a page of this
process that is spliced into a pipe has its `struct page` in the pipe's buffer, and its number in
/proc/self/pagemap; the difference is the start of the array.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import sys
from typing import Optional, Sequence

from ktap import demand
from ktap.btf import Btf
from ktap.demand import Value
from ktap.kernel_data import KernelData
from ktap.members import TASK, Unreachable, follow
from vm.c_types import Named, Pointer, Scope, Structure, Type

BASE_ALIGNMENT = 1 << 30
"""The kernel places it at a multiple of this (arch/x86/mm/kaslr.c)."""
PRESENT = 1 << 63
NUMBER_MASK = (1 << 55) - 1
"""Of a word of pagemap (Documentation/admin-guide/mm/pagemap.rst)."""


def page_base(types: Btf, data: KernelData) -> Optional[int]:
    """The address of the `struct page` of page 0; None where it cannot be found out. Raises OSError."""
    page = types.find("struct page")
    if not isinstance(page, Structure):
        return None
    reader, writer = os.pipe()
    try:
        with mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
            memory[0] = 1
            address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
            _splice(writer, address)
            number = page_number(address)
            if number is None:
                return None
            found = _spliced_page(types, data, writer)
    except (Unreachable, BufferError):
        return None
    finally:
        os.close(reader)
        os.close(writer)
    if found is None:
        return None
    base = (found - number * page.size_bytes) % (1 << 64)
    return base if base % BASE_ALIGNMENT == 0 else None


def page_number(address: int) -> Optional[int]:
    """The number of the page that an address of this process is mapped to, None where that is not told."""
    with open("/proc/self/pagemap", "rb", buffering=0) as file:
        file.seek(address // mmap.PAGESIZE * 8)
        word = int.from_bytes(file.read(8), sys.byteorder)
    return (word & NUMBER_MASK) or None if word & PRESENT else None


def _splice(pipe: int, address: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    vector = struct.pack("@PN", address, 1)
    if libc.vmsplice(pipe, vector, ctypes.c_ulong(1), 0) != 1:
        raise OSError(ctypes.get_errno(), "vmsplice")


def _spliced_page(types: Btf, data: KernelData, pipe: int) -> Optional[int]:
    """The `struct page` in the first buffer of a pipe of this process."""
    task = data.task()
    files = _member(types, data, TASK, task, ("files", "fdt", "fd"))
    file = None if files is None else data.word(files + 8 * pipe)
    inner = None if file is None else _member(types, data, Pointer(Named("struct file")), file, ("private_data",))
    if inner is None:
        return None
    buffers = _member(types, data, Pointer(Named("struct pipe_inode_info")), inner, ("bufs",))
    if buffers is None:
        return None
    return _member(types, data, Pointer(Named("struct pipe_buffer")), buffers, ("page",))


def _member(types: Btf, data: KernelData, kind: Type, base: int, names: Sequence[str]) -> Optional[int]:
    """A pointer that is reached through members. Raises Unreachable."""
    member = follow(Scope(types), ".".join(names), Value("base"), kind, list(names))

    def known(expression: demand.Expression) -> Optional[int]:
        if isinstance(expression, Value):
            return base
        if not isinstance(expression, demand.Read):
            return None
        address = demand.evaluate(expression.address, known)
        return None if address is None else data.word(address)

    return known(member.read)

"""Memory of a process that is fetched without BPF: long strings, what lies beside them, and pointers to nothing."""

from __future__ import annotations

import pytest
from processor import words
from tracing import EVENTS, python, trace

pytestmark = pytest.mark.live
CALLS = """
import ctypes
libc = ctypes.CDLL(None)
pages = ctypes.create_string_buffer(1 << 16)
at = ctypes.addressof(pages) + 4095 & -4096
def put(offset, data):
    ctypes.memmove(at + offset, data, len(data))
    return ctypes.c_void_p(at + offset)
"""
LONG = CALLS + "libc.access(put(0, b'x' * 9000), 4)"
BOTH = CALLS + "libc.rename(put(0, b'a' * 3000), put(8192, b'b' * 3000))"


def both(script: str, code: str) -> list[str]:
    """What is printed without BPF, which is the same with it."""
    with_bpf, without = (trace(script, python(code), tier=tier) for tier in ("vm", EVENTS))
    assert not without.losses and not without.faults
    assert without.lines == with_bpf.lines
    return without.lines


def test_the_beginning_of_a_string_that_is_longer_than_the_kernel_fetches() -> None:
    script = "trace probe:libc:access /arg2 == 4/ { print(user_string(arg1, 16), user_string(arg1, 500) == nil) }"
    assert both(script, LONG) == ["x" * 16 + "\tfalse"]


def test_bytes_and_numbers_of_a_long_text() -> None:
    script = "trace probe:libc:access { print(user_buf(arg1, 40), user_u32(arg1), user_u8(arg1 + 9000)) }"
    assert both(script, LONG)[-1] == f"{'x' * 40}\t{0x78787878}\t0"


def test_a_string_that_the_page_has_no_room_for_is_nil() -> None:
    script = "trace probe:libc:rename { print(len(user_string(arg1)), user_string(arg2) == nil, user_string(arg2, 9)) }"
    traced = trace(script, python(BOTH), tier=EVENTS)
    assert traced.lines[-1] == "3000\ttrue\tbbbbbbbbb"


def test_pointers_to_nothing() -> None:
    """What lay at a place of the kernel's page before was taken for what a pointer that is none points at."""
    code = CALLS + (
        "here = put(0, b'name'); ptr = put(64, (at).to_bytes(8, 'little'))\n"
        "for _ in range(3): libc.access(ptr, 1); libc.access(ctypes.c_void_p(64), 2)\n"
    )
    script = """
    trace probe:libc:access name=+0(+0(%di)):string first=+0(+0(%di)):u8 mode=%si:u32 /mode == 1 || mode == 2/ {
        print(args.mode, args.name, args.first)
    }
    """
    assert both(words(script), code) == ["1\tname\t110", "2\t\t0"] * 3


def test_what_the_kernel_may_drop_uncounted_is_told() -> None:
    two = "trace probe:libc:rename { print(user_string(arg1), user_string(arg2)) }"
    traced = trace(two, python(CALLS + "libc.rename(b'a', b'b')"), tier=EVENTS)
    assert traced.lines[-1] == "a\tb"  # the strings of a program's functions are cut, and the event is there
    assert not any("not counted" in notice for notice in traced.notices)

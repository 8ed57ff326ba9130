"""Where programs at the return of system calls read the call's number of the registers (asm/ptrace.h)."""

from __future__ import annotations

import re

import pytest

from ktap.capture import SYSCALL_EXIT, Case, InPlace, Spec, capture_ir
from ktap.layout import aligned


@pytest.mark.parametrize("task", [True, False])
@pytest.mark.parametrize(("machine", "offset", "size_bytes"), [("x86_64", 120, 8), ("aarch64", 280, 4)])
def test_no_more_is_read_than_the_number(machine: str, offset: int, size_bytes: int, task: bool) -> None:
    """arm64's is a member of 4 bytes: the verifier took no program that read 8 there, and all of sys_exit_* was refused."""
    case = Case(aligned(()))
    ir = capture_ir(Spec(SYSCALL_EXIT, (case,), 1, "ring", machine=machine, in_place=InPlace(task=task)))
    place = re.search(rf"(%\w+) = (getelementptr i8, ptr %\w+, i64|add i64 %\w+,) {offset}\n", ir)
    assert place is not None
    load = rf"load i{8 * size_bytes}, ptr {place[1]}," if task else rf"\(ptr %\w+, i32 {size_bytes}, i64 {place[1]}\)"
    assert re.search(load, ir)

"""Programs put together: from the kinds of records they make and the handlers they run to instructions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Callable, Tuple

from compiler.bpf import Code
from ktap import kernel, task_name
from ktap.capture import SYSCALL_ENTER, SYSCALL_EXIT, Case, InPlace, Spec, capture_ir
from vm.named_tuple import NamedTuple

if TYPE_CHECKING:
    from ktap.attach import Options


class Made(NamedTuple):
    """A program before it is loaded."""

    spec: Spec
    ir: str
    code: Code
    room_bytes: int = 0
    """What lowered handlers need besides the stack."""


def in_place() -> InPlace:
    """What this kernel lets programs read of the running task."""
    return InPlace(kernel.reads_in_place(), task_name.offset())


def assemble(
    context: str,
    cases: Tuple[Case, ...],
    options: Options,
    transport: str,
    in_place: InPlace,
    code_of: Callable[[str], Code],
) -> Made:
    """A program for some kinds of records; `in_place` as in Spec, `code_of` compiles."""
    spec = Spec(
        context,
        cases,
        options.bits,
        transport,
        options.followed is not None,
        options.cpu,
        options.machine,
        kernel.compat() if context in (SYSCALL_ENTER, SYSCALL_EXIT) else None,
        in_place,
        late_base=options.late_base,
    )
    lowering = options.lowering
    if lowering is None or not any(case.bodies for case in cases):
        ir = capture_ir(spec)
        return Made(spec, ir, code_of(ir))
    lowering.begin()
    ir = capture_ir(spec._replace(emit=lowering.emit))
    code = lowering.check(cases, lambda: code_of(ir))
    spec = spec._replace(emit=lowering.emit, scratch_bytes=lowering.scratch_bytes)
    return Made(spec, ir, code, lowering.room_bytes)

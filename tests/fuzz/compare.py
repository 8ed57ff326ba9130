"""One drawn script in the VM and in the kernel: what both tell, byte for byte."""

from __future__ import annotations

import shlex
from typing import Callable, NamedTuple, Sequence

import test_cases as cases
from corpus import Fired
from kernel_tier import KernelSource
from synthetic import SyntheticSource

from compiler.compile import compile_source
from tests.fuzz.scripts import Drawn
from vm.diagnostic import Refusal
from vm.event import Source
from vm.limits import Limits
from vm.machine import Machine, Options
from vm.program import Program
from vm.run import Run, RunOptions
from vm.verify import verify

NAME = "drawn.kp"
LIMITS = {"handler_rounds": 200, "main_rounds": 100_000, "table_entries": 64}
"""Of every script, so that none runs long."""


class Told(NamedTuple):
    """All that a run tells."""

    output: bytes
    reports: str
    status: int
    lost: tuple[tuple[int, str], ...]


class Compared(NamedTuple):
    """A script on both tiers: how many of its handlers were in the kernel, and why others were not."""

    drawn: Drawn
    vm: Told
    kernel: Told
    lowered: int
    reasons: tuple[str, ...]

    @property
    def is_same(self) -> bool:
        """Whether both tell the same.

        Where a handler that stays in the VM faults, those in the kernel have counted its event by then, and go on until
        the run has ended: then what they counted is not compared, and the fault is.
        """
        if self.lowered and self.reasons and self.vm.reports:
            return (self.vm.reports, self.vm.status) == (self.kernel.reports, self.kernel.status)
        return self.vm == self.kernel


def compare(drawn: Drawn) -> Compared:
    """Run a script on both tiers. Raises Refusal for one that does not compile."""
    program = compile_source(drawn.source, NAME).program
    verify(program)
    sources: list[KernelSource] = []

    def in_kernel(machine: Machine, fired: Sequence[Fired]) -> Source:
        sources.append(KernelSource(machine, fired, interrupting=drawn.interrupting))
        return sources[0]

    vm, kernel = run(drawn, program, SyntheticSource), run(drawn, program, in_kernel)
    lowered = sources[0].lowered if sources else 0
    reasons = [reason.text for reason in sources[0].lowering.reasons().values()] if sources else []
    return Compared(drawn, vm, kernel, lowered, tuple(reasons))


def run(drawn: Drawn, program: Program, make_source: Callable[[Machine, Sequence[Fired]], Source]) -> Told:
    """Run a program on the events that were drawn with it."""
    sink, reports = cases.Sink(), list[str]()
    limits = Limits()._replace(**{**LIMITS, **dict(drawn.limits)})
    machine = Machine(program, sink, cases.Host(), Options(limits, {}))
    lost: tuple[tuple[int, str], ...] = ()
    try:
        outcome = Run(machine, make_source(machine, drawn.events), RunOptions(live=False), reports.append).execute()
        status, lost = outcome.status, tuple((loss.events, loss.what) for loss in outcome.losses)
    except Refusal as refusal:
        reports.append(refusal.render())
        status = refusal.status
    return Told(b"".join(sink.parts), "\n".join(reports), status, lost)


def case_of(compared: Compared) -> str:
    """The text of a case: the script, its events and what the VM tells."""
    drawn, told = compared.drawn, compared.vm
    lines = drawn.source.rstrip("\n").split("\n")
    for line, message in cases.told([told.reports]):
        if not message.startswith(cases.CALLER):
            lines[line - 1] += f" #! {message}"
    for name, value in {**LIMITS, **dict(drawn.limits)}.items():
        lines.append(f"#: limit {name}={value}")
    if told.status != bool(told.reports):
        lines.append(f"#: status {told.status}")
    lines += [f"#: lost {events} {what}" for events, what in told.lost]
    for fired in drawn.events:
        words = [fired.name, *([f"+{fired.after_ns}"] if fired.after_ns != 1000 else [])]
        lines.append("#@ " + shlex.join([*words, *(f"{name}={value}" for name, value in fired.values.items())]))
    lines += [f"#> {line}".rstrip() for line in cases.lines(told.output.decode("utf-8", "surrogateescape"))]
    return "\n".join(lines) + "\n"

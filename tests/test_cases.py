"""Every case of the corpus, on every tier: it prints what it says it prints, and nothing else."""

from __future__ import annotations

import re
from collections import Counter
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Callable, NamedTuple, Optional, Sequence

import pytest
from corpus import Case, Fired, all_cases, fired, read_case
from kernel_tier import Elsewhere, KernelSource
from synthetic import KERNEL_RELEASE, SyntheticSource

from compiler.compile import compile_source
from ktap.lowered import Lowering
from ktap.options import Options as Command
from ktap.session import asks_for_events, script_arguments
from vm.diagnostic import Diagnostic, Refusal
from vm.event import Source
from vm.image import dump, load
from vm.limits import Limits
from vm.machine import Machine, Options
from vm.program import Program
from vm.run import Run, RunOptions
from vm.verify import verify

CASES = all_cases()
PLACE = re.compile(r"(?P<name>[^\s:]+):(?P<line>\d+):\d+(?:: (?P<message>.*))?$")
CALLER = "called from "
CASES_IN_THE_KERNEL = 410
"""At least so many run there with all their handlers."""


class Result(NamedTuple):
    """What a run of a case gave."""

    output: str
    diagnostics: tuple[tuple[int, str], ...]
    """Line and message; those that begin with CALLER are callers of a fault."""
    status: int
    lost: tuple[tuple[int, str], ...] = ()


class Sink:
    """Keeps what is printed."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.parts.append(data)

    def flush(self) -> None:
        pass

    def tick(self, now_ns: int) -> None:
        pass


class Host:
    """A machine that is the same everywhere. 1970 began 1,700,000,000 s before it was started."""

    SYMBOLS = {"alpha": 0x1000, "beta": 0x2000}  # noqa: RUF012  # never changed

    def monotonic_ns(self) -> int:
        return 0

    def realtime_offset_ns(self) -> int:
        return 1_700_000_000_000_000_000

    def cpus(self) -> int:
        return 4

    def architecture(self) -> str:
        return "x86_64"

    def kernel_release(self) -> str:
        return KERNEL_RELEASE

    def kernel_address(self, symbol: str) -> Optional[int]:
        return self.SYMBOLS.get(symbol)

    def kernel_symbol(self, address: int) -> str:
        for name, start in self.SYMBOLS.items():
            if 0 <= address - start < 0x100:
                return f"{name}+{address - start:#x}"
        return f"{address:#x}"

    def user_symbol(self, pid: int, address: int) -> str:
        return f"{pid}:{address:#x}"

    def run(self, command: str) -> int:
        raise AssertionError("no case may run a command")

    def send_signal(self, pid: int, number: int) -> None:
        raise AssertionError("no case may send a signal")


@cache
def compiled(path: Path) -> tuple[Program, tuple[Diagnostic, ...]]:
    """The program of a case and the warnings about it. Raises Refusal."""
    case = read_case(path)
    result = compile_source(case.source, path.name)
    verify(result.program)
    return result.program, tuple(result.warnings)


# -- tiers ------------------------------------------------------------------------------------


MakeSource = Callable[[Machine, Sequence[Fired]], Source]


def run(case: Case, program: Program, make_source: MakeSource = SyntheticSource) -> Result:
    """Run a program on the events of its case."""
    sink, reports = Sink(), list[str]()
    arguments = script_arguments(Command(script=case.path.name, arguments=case.arguments))
    machine = Machine(program, sink, Host(), Options(Limits()._replace(**case.limits), arguments))
    source = make_source(machine, case.events) if asks_for_events(program) or case.events else None
    lost: tuple[tuple[int, str], ...] = ()
    try:
        outcome = Run(machine, source, RunOptions(live=False), reports.append).execute()
        status, lost = outcome.status, tuple((loss.events, loss.what) for loss in outcome.losses)
    except Refusal as refusal:
        reports.append(refusal.render())
        status = refusal.status
    return Result(b"".join(sink.parts).decode("utf-8", "surrogateescape"), told(reports), status, lost)


def told(reports: list[str]) -> tuple[tuple[int, str], ...]:
    """The places and messages in reports; what is under them are the source line and the caret."""
    found: list[tuple[int, str]] = []
    for line in "\n".join(reports).split("\n"):
        place = PLACE.search(line)
        if place is None:
            continue
        if line.startswith("    " + CALLER):
            found.append((int(place["line"]), line.strip()))
        elif place["message"] is not None and place.start() == 0:
            found.append((int(place["line"]), place["message"]))
    return tuple(found)


def run_compiled(case: Case) -> Result:
    """As the command runs a script."""
    return run(case, compiled(case.path)[0])


def run_image(case: Case) -> Result:
    """As the command runs a compiled file."""
    program = load(dump(compiled(case.path)[0]), case.path.name)
    verify(program)
    return run(case, program)


def run_kernel(case: Case) -> Result:
    """As the command runs a script whose handlers go to the kernel where they can."""
    program = compiled(case.path)[0]
    try:
        return run(case, program, KernelSource)
    except Elsewhere as where:
        pytest.skip(f"the test cannot have {where}")


class Tier(NamedTuple):
    """A way to run a case."""

    name: str
    run: Callable[[Case], Result]
    is_vm: bool = True


TIERS = (
    pytest.param(Tier("vm", run_compiled), id="vm"),
    pytest.param(Tier("image", run_image), id="image"),
    pytest.param(Tier("kernel", run_kernel, False), id="kernel", marks=pytest.mark.live),
)


# -- the test ---------------------------------------------------------------------------------


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_case(case: Case, tier: Tier) -> None:
    if case.vm_only and not tier.is_vm:
        pytest.skip(f"vm only: {case.vm_only}")
    try:
        warnings = compiled(case.path)[1]
        result = tier.run(case)
    except Refusal as refusal:
        warnings, result = (), Result("", told([refusal.render()]), refusal.status)
    messages = told([warning.render(case.source) for warning in warnings]) + result.diagnostics
    order = sorted if case.unordered else list
    assert order(lines(result.output)) == order(case.output), messages
    check_diagnostics(case, messages)
    assert result.status == case.status
    assert result.lost == case.lost


def lines(text: str) -> list[str]:
    """The lines of an output; a last one that has no newline counts."""
    found = text.split("\n")
    return found if found[-1] else found[:-1]


def check_diagnostics(case: Case, messages: tuple[tuple[int, str], ...]) -> None:
    """All that is expected was told, and of errors and warnings nothing else."""
    left = list(messages)
    for line, text in case.diagnostics:
        fitting = [message for message in left if message[0] == line and text in message[1]]
        assert fitting, f"line {line}: no message has `{text}`: {messages}"
        left.remove(fitting[0])
    assert not [message for message in left if not message[1].startswith(CALLER)]


def test_names_are_facts() -> None:
    """Cases lie in a directory of their kind and have names of words."""
    assert len(CASES) == len({case.id for case in CASES})
    for case in CASES:
        assert re.fullmatch(r"[a-z_]+/[a-z0-9_]+", case.id), case.id


@pytest.mark.parametrize(
    ("text", "complaint"), [("print(1)", "nothing is expected"), ("print(1) #> 1\n#: quickly", "no option 'quickly'")]
)
def test_a_case_that_is_none(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "case.kp"
    path.write_text(text)
    with pytest.raises(ValueError, match=complaint):
        read_case(path)


def test_events_of_cases() -> None:
    assert fired("test:event +5 a=-1 'text=a b' path=/x=y") == Fired(
        "test:event", {"a": "-1", "text": "a b", "path": "/x=y"}, 5
    )
    assert fired("test:event").after_ns == 1000


@pytest.mark.live
def test_the_kernel_takes_most_handlers(capsys: pytest.CaptureFixture[str]) -> None:
    """So many cases run in the kernel with every handler of events; what keeps others in the VM is shown."""
    whole = 0
    reasons: Counter[str] = Counter()
    for case in CASES:
        lowering = chosen(case)
        if lowering is None or lowering.plan is None:
            continue
        left = lowering.reasons()
        whole += not left and bool(lowering.plan.kernel)
        reasons.update(re.sub(r"`\w+`", "`…`", reason.text) for reason in left.values())
    with capsys.disabled():
        print(f"\n{whole} cases run in the kernel; handlers that stay in the VM:")
        print("".join(f"{count:5} {reason}\n" for reason, count in reasons.most_common(12)), end="")
    assert whole >= CASES_IN_THE_KERNEL


def chosen(case: Case) -> Optional[Lowering]:
    """What decides which handlers of a case go to the kernel, after it has; None for a case without events."""
    sources: list[KernelSource] = []

    def make_source(machine: Machine, events: Sequence[Fired]) -> KernelSource:
        sources.append(KernelSource(machine, ()))
        return sources[0]

    if not case.vm_only and case.events:
        with suppress(Refusal):
            run(case, compiled(case.path)[0], make_source)
    return sources[0].lowering if sources else None

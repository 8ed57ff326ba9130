"""`ktap explain` and the dumps of what is made for the kernel.

What it says of a script below cases/ stands beside the script, in a file `.expected`; the number of
instructions is the compiler's affair and written as N. There the kernel refuses everything, so that
the answer is one on every machine; that it takes the programs is tested on a live one.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import NoReturn

import pytest
from conftest import NOBODY, Ktap
from made_machine import Kept, MadeUpHostWithSymbols
from synthetic import TRACEFS, Types

from compiler.compile import compile_source
from ktap import kernel
from ktap.explain import Survey, page, size_text, survey
from ktap.live import LiveSource
from ktap.lowered import Lowering
from ktap.resolve import Kernel
from ktap.settings import Helpers, Options
from ktap.tracefs import Tracefs
from vm.diagnostic import Refusal
from vm.library.foreign import declarations
from vm.machine import Machine
from vm.program import Program
from vm.verify import verify

CASES = Path(__file__).parent / "cases"
PROCESSORS = 2
live = pytest.mark.live


def denied(*arguments: object, **named: object) -> NoReturn:
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), "bpf")


def compiled(path: Path) -> Program:
    program = compile_source(path.read_text(), path.name).program
    verify(program)
    return program


def surveyed(program: Program) -> Survey:
    """What is found out about a program on the invented kernel."""
    machine = Machine(program, Kept(), MadeUpHostWithSymbols())
    notices: list[str] = []
    helpers = Helpers(
        lambda event: None, list, machine.host.kernel_address, lambda address: "", lambda: declarations(machine)
    )
    where = Kernel(lambda: Tracefs(str(TRACEFS)), "x86_64", Types)
    source = LiveSource(program, Options(attaching=False), helpers, where, notices.append, Lowering(machine))
    machine.run_main()
    try:
        return survey(machine, source, PROCESSORS, "one ring of 1.0 MiB", notices)
    finally:
        source.close()


def told(program: Program) -> str:
    """The text, without what depends on the compiler and the machine."""
    text = page(surveyed(program), "x86_64")
    return re.sub(r"\d+ instructions", "N instructions", text)


@pytest.fixture
def no_privilege(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "create_map", denied)
    monkeypatch.setattr(kernel, "load", denied)
    monkeypatch.setattr(kernel, "has_ring", denied)


@pytest.mark.usefixtures("no_privilege")
@pytest.mark.parametrize("path", sorted(CASES.glob("*.kp")), ids=lambda path: path.stem)
def test_what_is_told(path: Path) -> None:
    assert told(compiled(path)) == path.with_suffix(".expected").read_text()


@pytest.mark.usefixtures("no_privilege")
def test_a_script_without_its_text_is_told_by_its_lines() -> None:
    text = told(compiled(CASES / "counts.kp")._replace(source=None))
    assert re.search(r"^  kernel +11  trace test:event$", text, re.M)
    assert "names[execname]" not in text


@pytest.mark.usefixtures("no_privilege")
def test_a_script_that_cannot_run_is_refused() -> None:
    program = compile_source("trace test:nothing { }", "wrong.kp").program
    with pytest.raises(Refusal, match="nothing"):
        surveyed(program)


@live
@pytest.mark.parametrize("name", ["counts", "state_of_threads", "stays_in_the_vm"])
def test_the_kernel_takes_the_programs(name: str) -> None:
    found = surveyed(compiled(CASES / f"{name}.kp"))
    assert found.unchecked is None
    assert found.programs and all(program.accepted for program in found.programs)
    assert "the kernel's verifier takes them all" in page(found, "x86_64")


@pytest.mark.parametrize(
    ("size_bytes", "text"), [(16, "16 bytes"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (3 << 20, "3.0 MiB")]
)
def test_sizes(size_bytes: int, text: str) -> None:
    assert size_text(size_bytes) == text


# -- the command ------------------------------------------------------------------------------

COUNT = "s = {} n = 0 trace sched:sched_switch { s[execname] += 1 } tick-1s { print(n) }"


@live
def test_explain_runs_the_main_chunk_and_attaches_nothing(ktap: Ktap) -> None:
    done = ktap("explain", "-e", f'print("main") {COUNT}')
    assert "main" not in done.stdout
    assert re.search(r"^  kernel +1  trace sched:sched_switch$", done.stdout, re.M)
    assert re.search(r"^  VM +1  tick-1s$", done.stdout, re.M)


@live
def test_compiled_scripts_too(ktap: Ktap, tmp_path: Path) -> None:
    image = tmp_path / "count.kpc"
    ktap("compile", "-e", COUNT, "-o", str(image))
    assert ktap("explain", str(image)).stdout == ktap("explain", "-e", COUNT).stdout


@live
@pytest.mark.parametrize(
    ("stage", "pattern"),
    [
        ("llvm", r"^define i32 @program\(ptr %ctx\)"),
        ("bpf", r"^ +\d+: call map_lookup#1$"),
        ("maps", r"^  table0: hash a CPU, 16384 x \(16 \+ \d+ bytes\)"),
    ],
)
def test_dumps(ktap: Ktap, stage: str, pattern: str) -> None:
    assert re.search(pattern, ktap("dump", "--stage", stage, "-e", COUNT).stdout, re.M)


@live
def test_limits_are_those_of_the_run(ktap: Ktap) -> None:
    assert ": hash a CPU, 100 x (" in ktap("dump", "--stage", "maps", "--max-entries", "100", "-e", COUNT).stdout


def test_a_fault_of_the_main_chunk(ktap: Ktap) -> None:
    done = ktap("explain", "-e", "x = 1 / 0", status=1)
    assert "divide 0" in done.stderr


def test_a_main_chunk_that_exits(ktap: Ktap) -> None:
    assert "the main chunk ends the script: exit()" in ktap("explain", "-e", f"exit() {COUNT}").stdout


@pytest.mark.root
def test_without_privilege(ktap: Ktap) -> None:
    nobody = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    done = ktap("explain", "-e", COUNT, prefix=nobody, cwd=Path("/"))
    assert "not known" in done.stdout
    assert "where handlers run was not found out" in done.stdout


@live
def test_a_script_is_explained_with_its_arguments(ktap: Ktap) -> None:
    """What it does with them decides what its handlers do."""
    script = (
        "trace sched:sched_switch { if (arg.lines) { print(string.upper(execname)) } else { s[execname] += 1 } } s = {}"
    )
    assert re.search(r"^  kernel +1  trace sched", ktap("explain", "-e", script).stdout, re.M)
    assert "calls string.upper, which only the VM has" in ktap("explain", "-", "--lines", input=script).stdout

"""The tables of facts are whole: each row has an implementation, documentation and a case that runs it.

What the cases exercise is read from the programs they compile to.
"""

from __future__ import annotations

import inspect
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Iterator

import pytest
from corpus import all_cases

from compiler.compile import compile_source
from compiler.lower.signature import SIGNATURES
from vm.diagnostic import Refusal
from vm.disassemble import SHOWN, disassemble
from vm.event import VARIABLES
from vm.fault import KINDS
from vm.library import FAMILY_OF, known, named, rows
from vm.library.builtin import KERNEL, TYPES, VM, Builtin, parse_parameters
from vm.limits import FLAGS, Limits
from vm.opcodes import BY_NAME, NUMBERS, OPCODES, Opcode
from vm.program import Function, Program
from vm.templates import TEMPLATES
from vm.verify import verify

CALLS = ("CALL", "CALLX", "TAILCALL", "TAILCALLX")
ROOT = Path(__file__).resolve().parent.parent
BUILTINS = rows()


@cache
def programs() -> tuple[Program, ...]:
    """What the cases compile to; those that show a compile error do not."""
    compiled = []
    for case in all_cases():
        try:
            compiled.append(compile_source(case.source, case.path.name).program)
        except Refusal as refusal:
            assert case.diagnostics, f"{case.id}: {refusal.render()}"
    return tuple(compiled)


def functions() -> Iterator[tuple[Program, Function]]:
    for program in programs():
        for function in program.functions:
            yield program, function


@cache
def opcodes_in_cases() -> frozenset[str]:
    return frozenset(instruction.op for _, function in functions() for instruction in function.code)


@cache
def names_in_cases(op: str) -> frozenset[bytes]:
    """The names that the constant operands of an opcode have in the cases."""
    place = BY_NAME[op].operands.index("k")
    return frozenset(
        str_of(program, instruction[1 + place])
        for program, function in functions()
        for instruction in function.code
        if instruction.op == op
    )


def str_of(program: Program, constant: int) -> bytes:
    value = program.constants[constant]
    assert isinstance(value, bytes)
    return value


@cache
def builtins_called_in_cases() -> frozenset[str]:
    return frozenset(name for program, function in functions() for name in builtins_called(program, function))


def builtins_called(program: Program, function: Function) -> Iterator[str]:
    """The builtins that a function loads into a register and calls there, or looks into (`ffi.C.printf`)."""
    loaded: dict[int, str] = {}
    for instruction in function.code:
        kinds = BY_NAME[instruction.op].operands
        if instruction.op == "BUILTIN":
            loaded[instruction.a] = str_of(program, instruction.b).decode()
        elif instruction.op in CALLS and instruction.a in loaded:
            yield loaded.pop(instruction.a)
        elif instruction.op == "GETINDEX" and instruction.b in loaded:
            yield loaded.pop(instruction.b)  # `ffi.C` is looked into
        elif kinds.startswith("w"):
            loaded.pop(instruction.a, None)


def test_the_cases_compile_and_pass_the_verifier() -> None:
    assert len(programs()) > 50
    for program in programs():
        verify(program)
        assert disassemble(program)


# -- opcodes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("row", OPCODES, ids=lambda row: row.name)
def test_opcode(row: Opcode) -> None:
    assert row.name in TEMPLATES, "the interpreter has no template for it"
    assert set(row.operands) <= set(SHOWN)
    assert len(row.operands) <= 3
    assert row.effect
    assert set(row.faults) <= set(KINDS)
    assert row.jumps == ("j" in row.operands)
    assert row.name in opcodes_in_cases(), "no case in tests/cases compiles to it"


def test_nothing_but_opcodes_has_a_template() -> None:
    assert set(TEMPLATES) == set(NUMBERS) == set(BY_NAME)
    assert len(OPCODES) == len(NUMBERS) < 256


# -- builtins ---------------------------------------------------------------------------------


@pytest.mark.parametrize("row", BUILTINS, ids=lambda row: row.name)
def test_builtin(row: Builtin) -> None:
    assert callable(row.make)
    assert inspect.getmodule(row.make) is not None
    assert row.help
    assert "\n" not in row.help
    assert len(row.help) <= 120
    assert row.tiers == (KERNEL if row.name in SIGNATURES else VM), "what handlers in the kernel can call is SIGNATURES"
    assert set(row.faults) <= set(KINDS)
    parse_parameters(row.parameters)  # KeyError for a type that is none
    assert row.name in builtins_called_in_cases(), "no case in tests/cases calls it"


def test_families_say_which_builtins_they_have() -> None:
    names = {row.name.partition(".")[0] for row in BUILTINS}
    assert sorted(FAMILY_OF) == sorted(names)
    for row in BUILTINS:
        assert row.make.__module__.startswith("vm.library.")
        assert row.name in named(row.name.partition(".")[0])
    assert named("no_builtin") == () and not known("string.no_builtin") and known("string.len")


def test_a_builtin_loads_its_own_family_alone() -> None:
    code = "import sys, vm.library as l; l.known('len'); l.known('nothing'); print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = {name.rpartition(".")[2] for name in done.stdout.split() if name.startswith("vm.library.")}
    assert loaded == {"builtin", "basics"}


def test_every_builtin_of_the_kernel_is_one() -> None:
    assert set(SIGNATURES) <= {row.name for row in BUILTINS}


def test_types_of_builtins() -> None:
    for row in BUILTINS:
        for parameter in parse_parameters(row.parameters):
            assert parameter.types is None or set(parameter.types) <= {t for types in TYPES.values() for t in types}


# -- events, limits ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", [variable.name for variable in VARIABLES])
def test_event_variable(name: str) -> None:
    assert name.encode() in names_in_cases("EVENT"), "no case in tests/cases reads it"


@pytest.mark.parametrize("path", ["args.", "curtask."])
def test_event_path(path: str) -> None:
    assert any(name.startswith(path.encode()) for name in names_in_cases("EVENT")), "no case in tests/cases reads one"


def test_every_limit_has_an_option() -> None:
    assert {flag.field for flag in FLAGS} == set(Limits._fields)
    assert len({flag.name for flag in FLAGS}) == len(FLAGS)
    for flag in FLAGS:
        assert flag.minimum <= getattr(Limits(), flag.field) <= flag.maximum
        assert flag.help

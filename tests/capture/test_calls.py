"""Calls of kernel functions on every architecture: where registers are, and the same record made of typed arguments."""

from __future__ import annotations

import pytest

from ktap.calls import Called, typed_recipe
from ktap.demand import EITHER, Binary, Number, Place, Read
from ktap.event_format import RETVAL
from ktap.fetch import Argument, Context, Shape, parse_fetch, result
from ktap.fetched import FUNCTION, Recipe, address_argument, record_of
from ktap.registers import MACHINES

FUNCTION_OF_TWO = Called("f", 0xFFFF800000100000, type_id=1, words=2)
OFFSETS = [
    ("x86_64", "di", 112),
    ("x86_64", "si", 104),
    ("x86_64", "ax", 80),
    ("x86_64", "ip", 128),
    ("x86_64", "flags", 144),
    ("x86_64", "sp", 152),
    ("aarch64", "x0", 0),
    ("aarch64", "x7", 56),
    ("aarch64", "x30", 240),
    ("aarch64", "sp", 248),
    ("aarch64", "pc", 256),
    ("aarch64", "pstate", 264),
]
"""Of struct pt_regs (asm/ptrace.h), which begins struct user_pt_regs on arm64."""
PARTS = [("x86_64", "eax", 80, 4), ("x86_64", "ah", 81, 1), ("x86_64", "r9d", 64, 4), ("aarch64", "w3", 24, 4)]


@pytest.mark.parametrize(("machine", "name", "offset"), OFFSETS)
def test_where_registers_are(machine: str, name: str, offset: int) -> None:
    assert MACHINES[machine].registers[name] == (offset, 8)


@pytest.mark.parametrize(("machine", "name", "offset", "size_bytes"), PARTS)
def test_where_parts_of_registers_are(machine: str, name: str, offset: int, size_bytes: int) -> None:
    assert MACHINES[machine].parts[name] == (offset, size_bytes)


def test_names_of_the_link_and_frame_registers() -> None:
    arm = MACHINES["aarch64"]
    assert (arm.parts["lr"], arm.parts["fp"]) == (arm.registers["x30"], arm.registers["x29"])


def recipe(machine: str, fetch: str) -> Recipe:
    arguments = parse_fetch(fetch, Context(MACHINES[machine], EITHER))
    return record_of("", arguments, address_argument(FUNCTION, False), (), True).recipe


@pytest.mark.parametrize("machine", MACHINES)
def test_arguments_become_words(machine: str) -> None:
    made = typed_recipe(recipe(machine, "a=$arg2 b=+8($arg1):u32 c=$comm"), FUNCTION_OF_TWO, machine)
    assert made is not None
    _, second, behind_first, _ = [part.what for part in made.parts]
    assert second == Place(8, 8, False)
    assert behind_first == Read(EITHER, "bytes", Binary("ADD", Place(0, 8, False), Number(8)), 4)


@pytest.mark.parametrize(
    ("machine", "fetch"),
    [
        ("x86_64", "$arg3"),
        ("x86_64", "%sp"),
        ("x86_64", "$stack1"),
        ("aarch64", "$arg3"),
        ("aarch64", "$arg9"),
        ("aarch64", "%lr"),
    ],
)
def test_what_only_registers_have_keeps_the_other_program(machine: str, fetch: str) -> None:
    assert typed_recipe(recipe(machine, fetch), FUNCTION_OF_TWO, machine) is None


@pytest.mark.parametrize("machine", MACHINES)
def test_a_result_is_the_word_behind_the_arguments(machine: str) -> None:
    context = Context(MACHINES[machine], EITHER, returns=True)
    hidden = [Argument(RETVAL, result(context), Shape("s", 4))]
    record = record_of("", (), address_argument(FUNCTION, True), hidden, True)
    made = typed_recipe(record.recipe, FUNCTION_OF_TWO._replace(returns=True), machine)
    assert made is not None
    assert made.parts[-1].what == Place(16, 8, False)

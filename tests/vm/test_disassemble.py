"""The disassembler: the whole of a small program, and every kind of operand and constant."""

from __future__ import annotations

import pytest
from assembler import Listing, program

from vm.disassemble import SHOWN, constant_text, disassemble
from vm.image import dump, load
from vm.opcodes import OPCODES
from vm.program import Constant, Function, Instruction, Program, Span, Upvalue

SOURCE = 'var n = 1\nprint("a",\t...)\n\nreturn function () { n = nil }'
SAMPLE = program(
    Listing(
        "BOX 0 =1\nagain: BUILTIN 1 ='print'\nMOVE 2 ='a'\nVARARG 3 ALL\nCALLX 1 2 0\nJUMPIF 0 @again\nCLOSURE 1 1\nRETURN 1 1",
        registers=4,
        name="main chunk",
    ),
    Listing("SETUP 0 =nil\nRETURN 0 0", 2, 2, False, (Upvalue(True, 0, "n"), Upvalue(False, 3, "m")), ""),
    source=SOURCE,
)
EXPECTED = """\
# test.kp: 2 functions, 4 constants

f0 main chunk(...): 4 registers
        # 1: var n = 1
            0  BOX        r0, 1
L1:         1  BUILTIN    r1, "print"
        # 2: print("a",\t...)
            2  MOVE       r2, "a"
            3  VARARG     r3, all
        # 3:
            4  CALLX      r1, 2, 0
            5  JUMPIF     r0, L1
        # 4: return function () { n = nil }
            6  CLOSURE    r1, f1
            7  RETURN     r1, 1

f1(r0, r1): 2 registers; u0(n) = r0, u1(m) = u3
        # 1: var n = 1
            0  SETUP      u0(n), nil
            1  RETURN     r0, 0
"""


def test_a_program() -> None:
    assert disassemble(SAMPLE) == EXPECTED


def test_a_program_without_its_source() -> None:
    text = disassemble(SAMPLE._replace(source=None))
    assert text.splitlines()[3:5] == ["        # 1:", "            0  BOX        r0, 1"]


def test_a_program_from_an_image_looks_the_same() -> None:
    assert disassemble(load(dump(SAMPLE))) == EXPECTED


@pytest.mark.parametrize(
    "value, text",
    [
        (None, "nil"),
        (True, "true"),
        (False, "false"),
        (-(2**63), "-9223372036854775808"),
        (b"", '""'),
        (b'a"b\\c\n\t\r\0\x7f\xff', '"a\\"b\\\\c\\n\\t\\r\\x00\\x7f\\xff"'),
        (b"x" * 201, '"' + "x" * 200 + '"…'),
    ],
)
def test_constants(value: Constant, text: str) -> None:
    assert constant_text(value) == text


def test_every_kind_of_operand_has_a_form() -> None:
    assert {kind for row in OPCODES for kind in row.operands} == set(SHOWN)


@pytest.mark.parametrize("row", OPCODES, ids=lambda row: row.name)
@pytest.mark.parametrize("operand", [-32768, -1, 0, 5, 32767])
def test_every_row_with_any_operands(row: object, operand: int) -> None:
    """It shows programs that the verifier refuses, too."""
    name, kinds = row.name, row.operands  # type: ignore[attr-defined]
    instruction = Instruction(name, *[operand] * len(kinds))
    function = Function("f", 0, True, 1, (Upvalue(True, 0, "up"),), (instruction,), (Span(1, 1, 1, 1),))
    line = disassemble(Program("a.kp", (7, b"s"), (function,))).splitlines()[-1]
    assert line.split()[1 if not line.startswith("L") else 2] == name
    assert line.count(",") == len(kinds) - 1


def test_what_is_not_there_is_marked() -> None:
    code = (Instruction("MOVE", 0, -3), Instruction("GETUP", 0, 1), Instruction("CLOSURE", 0, 2))
    function = Function("f", 0, True, 1, (), code, (Span(9, 1, 9, 1),) * 3)
    lines = disassemble(Program("a.kp", (), (function,), "one line")).splitlines()
    assert [line.split()[-1] for line in lines[-3:]] == ["2?", "u1?", "f2?"]
    assert lines[-4].strip() == "# 9:"

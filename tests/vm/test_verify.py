"""The verifier: what a compiler can rightly make passes, and each thing a machine relies on is refused without it."""

from __future__ import annotations

import time
from typing import Optional

import pytest
from assembler import Listing, program

from vm.diagnostic import Refusal
from vm.opcodes import BY_NAME, OPCODES
from vm.program import (
    MAX_CODE,
    MAX_COLUMN,
    MAX_CONSTANTS,
    MAX_FUNCTIONS,
    MAX_INSTRUCTIONS,
    MAX_UPVALUES,
    Function,
    Instruction,
    Program,
    Span,
    Upvalue,
)
from vm.verify import verify

END = "\nRETURN 0 0"


def message(refused: Program) -> Optional[str]:
    """Why a program is refused, None when it passes."""
    try:
        verify(refused)
    except Refusal as refusal:
        assert refusal.status == 1
        return refusal.diagnostics[0].message
    return None


def inner(text: str, *upvalues: Upvalue, **facts: object) -> Listing:
    return Listing(text, 0, 8, False, upvalues, "inner")._replace(**facts)


LOOP = """
    MOVE 0 =1
    MOVE 1 =10
    MOVE 2 =1
    FORPREP 0 @end
    body: {}
    FORLOOP 0 @body
    end: RETURN 0 0
"""
PAIRS = """
    BUILTIN 0 ='pairs'
    NEWTABLE 1
    CALL 0 1 3
    ITERPREP 3 0
    next: ITERNEXT 3 2 @end
    {}
    JUMP @next
    end: {}
    RETURN 0 0
"""

GOOD = {
    "nothing": "RETURN 0 0",
    "no registers": Listing("RETURN 0 0", registers=0),
    "a constant of each type": "\n".join(f"MOVE {n} ={c}" for n, c in enumerate(("nil", "true", "1", "'s'"))) + END,
    "a loop": LOOP.format("ADD 4 3 =1"),
    "a loop in a loop": LOOP.format(
        "MOVE 4 3\nMOVE 5 =5\nMOVE 6 =1\nFORPREP 4 @out\nin: ADD 0 7 4\nFORLOOP 4 @in\nout: MOVE 3 =nil"
    ).replace("ADD 0", "ADD 3"),
    "leaving a loop": LOOP.format("JUMPIF 3 @end"),
    "a loop over pairs": PAIRS.format("ADD 6 4 5", "MOVE 6 =nil"),
    "a loop over pairs left": PAIRS.format("JUMPIF 4 @end", "MOVE 6 =nil"),
    "a loop whose registers are used again behind it": LOOP.format("MOVE 4 3").replace("end:", "end: BOX 0 =1\n"),
    "a pack of arguments": "BUILTIN 0 ='print'\nVARARG 1 ALL\nCALLX 0 1 0" + END,
    "a pack of results": "BUILTIN 0 ='print'\nMOVE 1 0\nCALL 1 0 ALL\nCALLX 0 1 ALL\nRETURNX 0 1",
    "two packs": "BUILTIN 0 ='print'\nMOVE 1 =1\nVARARG 2 ALL\nTAILCALLX 0 2",
    "some of the arguments": "VARARG 0 3\nRETURN 0 3",
    "a list": "NEWTABLE 0\nMOVE 1 =1\nMOVE 2 =2\nSETLIST 0 1 2\nVARARG 1 ALL\nSETLIST 0 1 ALL\nRETURN 0 1",
    "a multi-key": "MOVE 1 =1\nMOVE 2 =2\nKEY 0 1 2\nNEWTABLE 1\nSETINDEX 1 0 =3\nRETURN 1 1",
    "a value of one type or another": "VARARG 0 1\nJUMPIF 0 @else\nMOVE 1 =1\nJUMP @end\nelse: MOVE 1 ='s'\nend: RETURN 1 1",
    "unset in dead code": "RETURN 0 0\nADD 1 2 3\nRETURN 1 1",
    "unset on a way not taken up again": "VARARG 0 1\nJUMPIF 0 @end\nMOVE 1 =1\nRETURN 1 1\nend: RETURN 0 1",
    "kinds that differ where nobody reads": "VARARG 0 1\nJUMPIF 0 @else\nBOX 1 =1\nJUMP @end\nelse: MOVE 1 =1\nend: RETURN 0 1",
    "a loop that never ends": "again: JUMP @again",
    "a box": "BOX 0 =1\nUNBOX 1 0\nADD 1 1 =1\nSETBOX 0 1" + END,
    "a probe": "CLOSURE 0 1\nPROBE 0 ='sched:*' =nil\nPROBE 0 ='syscalls:*' ='pid == 1'" + END,
    "names": "EVENT 0 ='pid'\nEVENT 1 ='args.file.f_inode'\nEVENT 2 ='curtask.pid'\nSYMBOL 3 ='_etext.0'\nSETGLOBAL ='x' 3"
    + END,
    "every kind of event": "\n".join(
        f"PROBE =1 ='{event}' =nil" for event in ("tick-1s", "probe:/a b:c fd=%di", "größe")
    )
    + END,
}


@pytest.mark.parametrize("name", GOOD)
def test_good(name: str) -> None:
    assert message(program(GOOD[name], inner("RETURN 0 0"))) is None


FLOW = {
    "unset": ("MOVE 0 1", "register 1 may be unset, a value is needed"),
    "unset on one way": (
        "VARARG 0 1\nJUMPIF 0 @join\nMOVE 1 =1\njoin: MOVE 2 1",
        "register 1 may be unset, a value is needed",
    ),
    "unset before a loop's first round": (
        "JUMP @test\nbody: MOVE 0 =1\ntest: JUMPIF 0 @body",
        "register 0 may be unset, a value is needed",
    ),
    "a box as a value": ("BOX 0 =1\nMOVE 1 0", "register 0 holds a box, not a value"),
    "a pack as a value": ("VARARG 0 ALL\nMOVE 1 0", "register 0 holds a pack, not a value"),
    "an iterator as a value": (PAIRS.format("MOVE 6 3", ""), "register 3 holds an iterator, not a value"),
    "a value as a box": ("MOVE 0 =1\nUNBOX 1 0", "register 0 holds a value, not a box"),
    "a value as a box to set": ("MOVE 0 =1\nSETBOX 0 =1", "register 0 holds a value, not a box"),
    "a value as a pack": ("BUILTIN 0 ='print'\nMOVE 1 =1\nCALLX 0 1 0", "register 1 holds a value, not a pack"),
    "a value as an iterator": ("VARARG 0 4\nITERNEXT 3 2 0", "register 3 holds a value, not an iterator"),
    "box or value": (
        "VARARG 0 1\nJUMPIF 0 @else\nBOX 1 =1\nJUMP @end\nelse: MOVE 1 =1\nend: MOVE 2 1",
        "register 1 may be unset, a value is needed",
    ),
    "a pack before the last argument": (
        "BUILTIN 0 ='print'\nVARARG 1 ALL\nVARARG 2 ALL\nCALLX 0 2 0",
        "register 1 holds a pack, not a value",
    ),
    "a pack that is called": ("VARARG 0 ALL\nVARARG 1 ALL\nTAILCALLX 0 1", "register 0 holds a pack, not a value"),
    "a pack as a plain argument": (
        "BUILTIN 0 ='print'\nVARARG 1 ALL\nTAILCALL 0 1",
        "register 1 holds a pack, not a value",
    ),
    "a value as the last result": ("MOVE 0 =1\nRETURNX 0 1", "register 0 holds a value, not a pack"),
    "a list of a value": ("NEWTABLE 0\nMOVE 1 =1\nSETLIST 0 1 ALL", "register 1 holds a value, not a pack"),
    "a list of an unset register": (
        "NEWTABLE 0\nMOVE 1 =1\nSETLIST 0 1 2",
        "register 2 may be unset, a value is needed",
    ),
    "a key of an unset register": ("MOVE 1 =1\nKEY 0 1 2", "register 2 may be unset, a value is needed"),
    "a result too many": ("MOVE 0 =1\nRETURN 0 2", "register 1 may be unset, a value is needed"),
    "a result that CALL does not give": (
        "BUILTIN 0 ='print'\nCALL 0 0 2\nADD 0 1 2",
        "register 2 may be unset, a value is needed",
    ),
    "a pack that a call overwrites": (
        "BUILTIN 0 ='print'\nVARARG 1 ALL\nCALL 0 0 2\nRETURNX 1 1",
        "register 1 holds a value, not a pack",
    ),
    "FORPREP of unset registers": ("MOVE 0 =1\nMOVE 1 =1\nFORPREP 0 0", "register 2 may be unset, a value is needed"),
    "FORLOOP without FORPREP": ("VARARG 0 4\nloop: FORLOOP 0 @loop", "no FORPREP has set up the loop in register 0"),
    "FORLOOP round FORPREP": (
        "VARARG 0 4\nJUMPIF 0 @loop\nFORPREP 0 @loop\nloop: FORLOOP 0 @loop",
        "no FORPREP has set up the loop in register 0",
    ),
    "a loop's count written": (LOOP.format("MOVE 0 ='x'"), "no FORPREP has set up the loop in register 0"),
    "a loop's last written": (LOOP.format("BUILTIN 1 ='print'"), "no FORPREP has set up the loop in register 0"),
    "a loop's step written": (LOOP.format("MOVE 2 =0"), "no FORPREP has set up the loop in register 0"),
    "a loop's step written by a call": (
        LOOP.format("MOVE 1 =1\nCALL 1 0 2"),
        "no FORPREP has set up the loop in register 0",
    ),
    "a loop's step written by a loop": (
        LOOP.format("MOVE 4 =1\nMOVE 3 =1\nFORPREP 2 @out\nout: MOVE 4 =1"),
        "no FORPREP has set up the loop in register 0",
    ),
    "FORLOOP of the loop's other registers": (
        "VARARG 0 8\nFORPREP 0 @out\nout: FORLOOP 1 @out",
        "no FORPREP has set up the loop in register 1",
    ),
    "a loop's variable behind it": (
        LOOP.format("MOVE 4 3").replace("RETURN 0 0", "RETURN 3 1"),
        "register 3 may be unset, a value is needed",
    ),
    "a key behind its loop": (PAIRS.format("MOVE 6 4", "MOVE 6 4"), "register 4 may be unset, a value is needed"),
    "ITERPREP of unset registers": ("VARARG 0 2\nITERPREP 3 0", "register 2 may be unset, a value is needed"),
    "an iterator written in its loop": (
        PAIRS.format("MOVE 3 =nil", ""),
        "register 3 may be unset, an iterator is needed",
    ),
    "a table that is unset": ("NEWTABLE 0\nSETINDEX 0 1 =1", "register 1 may be unset, a value is needed"),
}


@pytest.mark.parametrize("name", FLOW)
def test_registers(name: str) -> None:
    text, expected = FLOW[name]
    listing = text if isinstance(text, Listing) else Listing(text + END)
    found = message(program(listing, constants=(b"print", b"pairs")))
    assert found is not None
    assert found.endswith(expected)


OPERANDS = {
    "MOVE 8 =1": "operand 1 is out of range: 8",
    "MOVE -1 =1": "operand 1 is out of range: -1",
    "MOVE 0 8": "operand 2 is out of range: 8",
    "MOVE 0 -9": "operand 2 is out of range: -9",
    "UNBOX 0 8": "operand 2 is out of range: 8",
    "UNBOX 0 -1": "operand 2 is out of range: -1",
    "JUMP 2": "operand 1 is out of range: 2",
    "JUMP -1": "operand 1 is out of range: -1",
    "JUMPIF =1 99": "operand 2 is out of range: 99",
    "GETGLOBAL 0 -1": "operand 2 is out of range: -1",
    "GETGLOBAL 0 8": "operand 2 is out of range: 8",
    "GETUP 0 0": "operand 2 is out of range: 0",
    "SETUP 0 =1": "operand 1 is out of range: 0",
    "CLOSURE 0 0": "operand 2 is out of range: 0",
    "CLOSURE 0 2": "operand 2 is out of range: 2",
    "CALL 9 0 0": "operand 1 is out of range: 9",
    "CALL 8 0 0": "registers 8 to 8, of 8",
    "CALL 0 8 0": "registers 0 to 8, of 8",
    "CALL 0 -1 0": "a count of 0, at least 1",
    "CALL 0 0 9": "registers 0 to 8, of 8",
    "CALL 0 0 -2": "operand 3 is out of range: -2",
    "CALL 0 251 0": "operand 2 is out of range: 251",
    "CALLX 0 0 0": "a count of 1, at least 2",
    "TAILCALL 0 -1": "a count of 0, at least 1",
    "TAILCALLX 0 0": "a count of 1, at least 2",
    "RETURN 0 -1": "a count of -1, at least 0",
    "RETURN 0 9": "registers 0 to 8, of 8",
    "RETURNX 0 0": "a count of 0, at least 1",
    "VARARG 7 2": "registers 7 to 8, of 8",
    "KEY 0 0 1": "a count of 1, at least 2",
    "KEY 0 0 ALL": "a count of -1, at least 2",
    "SETLIST =1 0 0": "a count of 0, at least 1",
    "SETLIST =1 8 ALL": "registers 8 to 8, of 8",
    "FORPREP 5 0": "registers 8 to 8, of 8",
    "FORLOOP 5 0": "registers 8 to 8, of 8",
    "ITERPREP 0 6": "registers 6 to 8, of 8",
    "ITERNEXT 0 0 0": "a count of 0, at least 1",
    "ITERNEXT 0 8 0": "registers 1 to 8, of 8",
    "ITERNEXT 8 1 0": "registers 8 to 8, of 8",
    "MOVE 0 =1 1": "an operand that it does not have is not 0",
    "NEWTABLE 0 1": "an operand that it does not have is not 0",
    "NEWTABLE 0 0 1": "an operand that it does not have is not 0",
    "FLY 0 0": "no such opcode",
    "GETGLOBAL 0 =1": "is no string",
    "SETGLOBAL =nil =1": "is no string",
    "BUILTIN 0 =true": "is no string",
    "EVENT 0 =1": "is no string",
    "SYMBOL 0 =1": "is no string",
    "PROBE =1 =1 =nil": "is no string",
    "PROBE =1 ='tick-1s' =1": "is no string",
    "GETGLOBAL 0 ='a.b'": "names no global: b'a.b'",
    "GETGLOBAL 0 =''": "names no global: b''",
    "SETGLOBAL ='a b' =1": "names no global: b'a b'",
    "SETGLOBAL ='ä' =1": "names no global",
    "BUILTIN 0 ='string..sub'": "names no builtin: b'string..sub'",
    "BUILTIN 0 ='__import__'": "names no builtin: b'__import__'",
    "EVENT 0 ='record'": "names no event value: b'record'",
    "EVENT 0 ='arg10'": "names no event value: b'arg10'",
    "EVENT 0 ='args'": "names no event value: b'args'",
    "EVENT 0 ='args.'": "names no event value: b'args.'",
    "EVENT 0 ='args.a-b'": "names no event value: b'args.a-b'",
    "EVENT 0 ='pid.real'": "names no event value: b'pid.real'",
    "SYMBOL 0 =''": "names no symbol: b''",
    "SYMBOL 0 ='a\nb'": "names no symbol: b'a\\nb'",
    "PROBE =1 ='' =nil": "names no event: b''",
    "PROBE =1 ='a' ='a\0'": "names no filter: b'a\\x00'",
    "PROBE =1 ='a\0' =nil": "names no event: b'a\\x00'",
}


@pytest.mark.parametrize("line", OPERANDS)
def test_operands(line: str) -> None:
    op, *operands = line.replace("\n", "\\n").replace("\0", "\\0").split(" ", 1)
    text = f"{op} {operands[0]}" + END
    found = message(program(text, Listing("RETURN 0 0"), constants=(1, 2, 3, 4, 5, 6, 7, 8)))
    assert found is not None
    assert found.startswith(f"bytecode refused: function f, instruction 0 {op}: ")
    assert OPERANDS[line] in found


def test_parameters_are_set_and_nothing_else() -> None:
    assert message(program("RETURN 0 0", inner("ADD 2 0 1\nRETURN 0 3", parameters=2))) is None
    found = message(program("RETURN 0 0", inner("ADD 3 0 2\nRETURN 0 3", parameters=2)))
    assert str(found).endswith("register 2 may be unset, a value is needed")


def test_names_in_bytes_that_are_no_text() -> None:
    for op, use in (("GETGLOBAL 0 0", "global"), ("SYMBOL 0 0", "symbol"), ("BUILTIN 0 0", "builtin")):
        found = message(program(op + END, constants=(b"\xff\xfe",)))
        assert found is not None
        assert found.endswith(f": constant 0 names no {use}: b'\\xff\\xfe'")


@pytest.mark.parametrize(
    "text, use", [("GETGLOBAL 0 0", "global"), ("SYMBOL 0 0", "symbol"), ("PROBE -1 0 0", "event")]
)
def test_long_names(text: str, use: str) -> None:
    assert message(program(text + END, constants=(b"x" * 65536,))) is None
    assert f"names no {use}: b'{'x' * 40}'" in str(message(program(text + END, constants=(b"x" * 65537,))))


CAPTURED = "BOX 3 =1\nCLOSURE 0 1\nRETURN 0 1"
NESTED = inner("GETUP 0 0\nCLOSURE 1 2\nRETURN 1 1", Upvalue(True, 3, "x"))
INNERMOST = inner("SETUP 0 =2\nRETURN 0 0", Upvalue(False, 0, "x"))


def test_upvalues() -> None:
    assert message(program(CAPTURED, NESTED, INNERMOST)) is None


@pytest.mark.parametrize(
    "functions, expected",
    [
        (("MOVE 3 =1\nCLOSURE 0 1\nRETURN 0 1", NESTED, INNERMOST), "1 CLOSURE: register 3 holds a value, not a box"),
        (("CLOSURE 0 1\nRETURN 0 1", NESTED, INNERMOST), "0 CLOSURE: register 3 may be unset, a box is needed"),
        (
            (CAPTURED, NESTED, INNERMOST._replace(upvalues=(Upvalue(False, 1, "x"),))),
            "1 CLOSURE: function 2 has upvalues that are not there",
        ),
        ((Listing(CAPTURED, registers=4), NESTED._replace(upvalues=(Upvalue(True, 4, "x"),)), INNERMOST), "not there"),
        (
            ("CLOSURE 0 1\nCLOSURE 0 2\nRETURN 0 0", inner("RETURN 0 0"), INNERMOST),
            "1 CLOSURE: function 2 has upvalues",
        ),
        ((CAPTURED, NESTED, INNERMOST._replace(text="GETUP 0 1" + END)), "0 GETUP: operand 2 is out of range: 1"),
        (("RETURN 0 0", NESTED._replace(upvalues=(Upvalue(True, 256, "x"),))), "an upvalue's place is out of range"),
        (("RETURN 0 0", NESTED._replace(upvalues=(Upvalue(True, -1, "x"),))), "an upvalue's place is out of range"),
        (
            ("RETURN 0 0", NESTED._replace(upvalues=(Upvalue(True, 0, "x"),) * (MAX_UPVALUES + 1))),
            "more than 250 upvalues",
        ),
        (("RETURN 0 0", inner("CLOSURE 0 1\nRETURN 0 0")), "a function contains itself"),
        (("RETURN 0 0", inner("CLOSURE 0 2" + END), inner("CLOSURE 0 1" + END)), "a function contains itself"),
    ],
)
def test_closures(functions: tuple[Listing, ...], expected: str) -> None:
    found = message(program(*functions))
    assert found is not None
    assert expected in found


def test_a_function_may_be_closed_over_in_several_places() -> None:
    twice = "BOX 3 =1\nCLOSURE 0 1\nCLOSURE 1 1\nCLOSURE 2 2\nRETURN 0 2"
    assert (
        message(
            program(twice, inner(CAPTURED.replace(" 1\n", " 2\n")), inner("GETUP 0 0" + END, Upvalue(True, 3, "x")))
        )
        is None
    )


def test_nesting() -> None:
    def nested(depth: int) -> Program:
        between = [Listing(f"CLOSURE 0 {n + 1}" + END) for n in range(depth)]
        return program(*between, Listing("RETURN 0 0"))

    assert message(nested(200)) is None
    assert message(nested(201)) == "bytecode refused: functions are nested deeper than 200"


MAIN = program("RETURN 0 0")


def changed(**facts: object) -> Program:
    return MAIN._replace(functions=(MAIN.functions[0]._replace(**facts),))


RETURN = MAIN.functions[0].code[0]
SPAN = MAIN.functions[0].spans[0]
MOVE = Instruction("MOVE", 0, 0)


@pytest.mark.parametrize(
    "wrong, expected",
    [
        (MAIN._replace(functions=()), "no main chunk"),
        (MAIN._replace(functions=MAIN.functions * (MAX_FUNCTIONS + 1)), "more than 8192 functions"),
        (MAIN._replace(constants=(1,) * (MAX_CONSTANTS + 1)), "more than 32768 constants"),
        (MAIN._replace(constants=(1, 1 << 63)), "constant 1 is beyond 64 bits"),
        (MAIN._replace(constants=(-(1 << 63) - 1,)), "constant 0 is beyond 64 bits"),
        (MAIN._replace(constants=("text",)), "constant 0 is of no type a constant can have"),
        (MAIN._replace(constants=(1.5,)), "constant 0 is of no type a constant can have"),
        (changed(variadic=False), "the main chunk takes `...`"),
        (changed(parameters=1), "the main chunk takes `...`"),
        (changed(upvalues=(Upvalue(True, 0, "x"),)), "the main chunk takes `...`"),
        (MAIN._replace(functions=(MAIN.functions[0], MAIN.functions[0]._replace(parameters=9))), "9 parameters and 8"),
        (MAIN._replace(functions=(MAIN.functions[0], MAIN.functions[0]._replace(parameters=-1))), "-1 parameters"),
        (changed(registers=251), "0 parameters and 251 registers"),
        (changed(code=(), spans=()), "0 instructions (1 to 32768)"),
        (changed(code=(RETURN,) * (MAX_INSTRUCTIONS + 1)), "32769 instructions (1 to 32768)"),
        (changed(spans=()), "0 places for 1 instructions"),
        (changed(spans=(SPAN, SPAN)), "2 places for 1 instructions"),
        (changed(spans=(Span(0, 1, 1, 1),)), "the place of instruction 0 is out of range"),
        (changed(spans=(Span(1, 1, 1, MAX_COLUMN + 1),)), "the place of instruction 0 is out of range"),
        (changed(code=(MOVE,)), "instruction 0 MOVE: the code runs off its end"),
        (program(LOOP.format("MOVE 4 3").split("end:")[0].replace("@end", "@body")), "the code runs off its end"),
        (
            MAIN._replace(functions=(MAIN.functions[0]._replace(code=(RETURN,) * 20_000, spans=(SPAN,) * 20_000),) * 7),
            f"more than {MAX_CODE} instructions",
        ),
    ],
)
def test_the_program(wrong: Program, expected: str) -> None:
    found = message(wrong)
    assert found is not None
    assert found.startswith("bytecode refused: ")
    assert expected in found


def test_a_refusal_has_its_place_in_the_script() -> None:
    with pytest.raises(Refusal) as refusal:
        verify(program("MOVE 0 =1\nMOVE 0 =1\nMOVE 1 2" + END, source="one\ntwo\nthree"))
    assert refusal.value.render() == (
        "test.kp:2:1: bytecode refused: function f, instruction 2 MOVE: register 2 may be unset, a value is needed\n"
        "two\n^^^"
    )


def test_every_opcode_is_in_a_good_program() -> None:
    """So that a new row cannot go without a thought of what it needs."""
    listings = [*GOOD.values(), CAPTURED, NESTED, INNERMOST, *OPERANDS]
    words = {word for listing in listings for word in (listing if isinstance(listing, str) else listing.text).split()}
    assert set(BY_NAME) - words <= PLAIN


PLAIN = frozenset(
    row.name
    for row in OPCODES
    if row.operands in ("wv", "wvv", "vvv", "vj") and row.name not in ("MOVE", "BOX", "SETINDEX", "JUMPIF", "ADD")
)
"""Rows that say all they need with the kinds of their operands."""


@pytest.mark.parametrize("op", sorted(PLAIN))
def test_plain_rows(op: str) -> None:
    kinds = BY_NAME[op].operands
    operands = " ".join({"w": "7", "j": "@end"}.get(kind, str(place)) for place, kind in enumerate(kinds))
    written = "RETURN 7 1" if "w" in kinds else "RETURN 0 0"
    assert message(program(f"VARARG 0 3\n{op} {operands}\nend: {written}")) is None
    values = [place for place, kind in enumerate(kinds) if kind == "v"]
    for unset in values:
        boxed = f"VARARG 0 3\nBOX {unset} =1\n{op} {operands}\nend: RETURN 0 0"
        assert str(message(program(boxed))).endswith(f"register {unset} holds a box, not a value")


def timed(checked: Program) -> tuple[float, Optional[str]]:
    start = time.process_time()
    found = message(checked)
    return time.process_time() - start, found


def of_code(code: list[Instruction], registers: int = 250) -> Program:
    function = Function("main", 0, True, registers, (), tuple(code), (SPAN,) * len(code))
    return Program("test.kp", (1,), (function,))


def test_a_large_function_is_verified_in_a_second() -> None:
    code = []
    for n in range(10_000):
        code += [Instruction("MOVE", n % 250, -1), Instruction("JUMPIF", n % 250, n * 7919 % 30_000), RETURN]
    assert timed(of_code([*code[:-1], Instruction("JUMP", 0)]))[0] < 1


def loops(depth: int, blocks: int) -> list[Instruction]:
    """Loops in loops around a chain of blocks; the end of each takes a register from all that lies in it."""
    code = [Instruction("MOVE", register, -1) for register in range(250)]
    heads = []
    for _ in range(depth):
        heads.append(len(code))
        code.append(Instruction("MOVE", 249, -1))
    for _ in range(blocks):
        code.append(Instruction("JUMPIF", -1, len(code) + 1))
    for register, head in enumerate(reversed(heads)):
        code += [Instruction("BOX", register, -1), Instruction("JUMPIF", -1, head)]
    return code


def test_loops_as_deep_as_a_program_can_have_them() -> None:
    assert timed(of_code([*loops(100, 100), RETURN]))[1] is None


def test_what_is_lost_at_the_end_of_a_loop_is_lost_in_it() -> None:
    code = loops(100, 100)
    code[350] = Instruction("MOVE", 249, 0)
    assert "register 0 may be unset" in str(timed(of_code([*code, RETURN]))[1])


def test_jumps_too_tangled() -> None:
    seconds, found = timed(of_code([*loops(249, 30_000), RETURN]))
    assert found == "bytecode refused: function main: its jumps are too tangled"
    assert seconds < 5

"""Translation: every opcode has a template, any jumps can be laid out, and what comes out means the same."""

from __future__ import annotations

import time
import warnings
from typing import Dict, List, Optional, Tuple

import pytest
from assembler import Listing, program
from hypothesis import given, settings
from hypothesis import strategies as st
from made_machine import made, printed, told
from stepper import End, run

from vm.blocks import MAX_INLINED, MAX_LOOPS, find_blocks, find_flow
from vm.diagnostic import Refusal
from vm.fault import Fault
from vm.infer import ANY, BOOLEAN, INTEGER, MAX_STATE, NIL, POSITIVE, STRING, TABLE, infer
from vm.limits import Limits
from vm.machine import Machine
from vm.opcodes import OPCODES
from vm.program import Function, Instruction, Program, Span
from vm.templates import TEMPLATES
from vm.translate import Translator
from vm.verify import verify

ROUNDS = 60


def test_every_opcode_has_a_template() -> None:
    assert set(TEMPLATES) == {row.name for row in OPCODES}


def source(script: str, number: int = 0) -> str:
    """The Python of a function of a script, without its head."""
    text = Translator(made(script).program).translate(number).source
    return text.split("out_of_calls()\n")[-1]


# -- the same meaning as the plain interpreter ------------------------------------------------

VALUES = (0, 1, -1, 7, (1 << 63) - 1, -(1 << 63), b"", b"ab", None, True, False)
REGISTERS = 6
BINARY = ("ADD", "SUB", "MUL", "DIV", "MOD", "BAND", "BOR", "BXOR", "SHL", "SHR", "EQ", "NE", "LT", "LE")


def operands() -> st.SearchStrategy[int]:
    """A register, or a constant."""
    return st.one_of(st.integers(0, REGISTERS - 1), st.integers(0, len(VALUES) - 1).map(lambda n: ~n))


@st.composite
def instructions(draw: st.DrawFn, length: int) -> Instruction:
    """One instruction of a function of so many instructions."""
    register, target = st.integers(0, REGISTERS - 1), st.integers(REGISTERS, REGISTERS + length)
    kind = draw(st.integers(0, 9))
    if kind < 4:
        return Instruction(draw(st.sampled_from(BINARY)), draw(register), draw(operands()), draw(operands()))
    if kind < 5:
        return Instruction(draw(st.sampled_from(("MOVE", "NOT", "NEG", "BITNOT"))), draw(register), draw(operands()))
    if kind < 6:
        if draw(st.booleans()):
            return Instruction("GETGLOBAL", draw(register), 7)
        return Instruction("SETGLOBAL", 7, draw(operands()))
    if kind < 7:
        return Instruction("JUMP", draw(target))
    return Instruction(draw(st.sampled_from(("JUMPIF", "JUMPIFNOT"))), draw(operands()), draw(target))


@st.composite
def functions(draw: st.DrawFn) -> Tuple[Instruction, ...]:
    """Code whose jumps go anywhere; all registers are set first."""
    length = draw(st.integers(1, 24))
    first = [Instruction("MOVE", n, ~draw(st.integers(0, len(VALUES) - 1))) for n in range(REGISTERS)]
    body = [draw(instructions(length)) for _ in range(length)]
    return (*first, *body, Instruction("RETURN", 0, REGISTERS))


def compiled(code: Tuple[Instruction, ...]) -> Program:
    spans = tuple([Span(1 + place, 1, 1 + place, 2) for place in range(len(code))])
    return Program("test.kp", VALUES, (Function("main", 0, True, REGISTERS, (), code, spans),))


def outcome(machine: Machine) -> End:
    """How the translated main chunk ends."""
    machine.arm(ROUNDS)
    maker = machine.names["make0"]
    assert callable(maker)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            main = maker()
        returned = main(1)
    except Fault as fault:
        return End(None, fault.kind, machine.located(fault).frames[0].span.line - 1)
    return End(returned if type(returned) is tuple else (returned,))


def typed(values: Optional[Tuple[object, ...]]) -> Optional[List[Tuple[type, object]]]:
    return None if values is None else [(type(value), value) for value in values]


@settings(deadline=None, max_examples=400)
@given(code=functions())
def test_any_code_means_what_the_plain_interpreter_says(code: Tuple[Instruction, ...]) -> None:
    candidate = compiled(code)
    try:
        verify(candidate)
    except Refusal:
        return  # jumps too tangled
    globals: Dict[int, object] = {}
    expected = run(candidate.functions[0], VALUES, ROUNDS, globals)
    machine = made(candidate)
    found = outcome(machine)
    assert (typed(found.returned), found[1:]) == (typed(expected.returned), expected[1:])
    assert machine.names["g7"] == globals.get(7) and type(machine.names["g7"]) is type(globals.get(7))


@settings(deadline=None, max_examples=200)
@given(bounds=st.tuples(*[st.sampled_from((*VALUES, 2, -2, 5))] * 3), write=st.booleans())
def test_counting_loops(bounds: Tuple[object, ...], write: bool) -> None:
    pool = list(dict.fromkeys([(type(value), value) for value in (*VALUES, *bounds, 100)]))
    constants = [value for _, value in pool]
    place = {key: ~number for number, key in enumerate(pool)}
    first = [Instruction("MOVE", n, place[type(value), value]) for n, value in enumerate(bounds)]
    code = (
        *first,
        Instruction("MOVE", 3, place[bytes, b"ab"]),
        Instruction("MOVE", 4, place[int, 0]),
        Instruction("FORPREP", 0, 8 + write),
        Instruction("ADD", 4, 4, 3),
        *([Instruction("MOVE", 3, place[bytes, b""])] if write else []),
        Instruction("FORLOOP", 0, 6),
        Instruction("RETURN", 4, 1),
    )
    spans = tuple([Span(1 + n, 1, 1 + n, 2) for n in range(len(code))])
    candidate = Program("t", tuple(constants), (Function("main", 0, True, REGISTERS, (), code, spans),))  # type: ignore[arg-type]
    machine = made(candidate)
    expected = run(candidate.functions[0], constants, ROUNDS, {})  # type: ignore[arg-type]
    found = outcome(machine)
    assert (typed(found.returned), found[1:]) == (typed(expected.returned), expected[1:])


# -- layout -----------------------------------------------------------------------------------


def test_plain_loops_ask_nothing() -> None:
    """Where there is no choice of what is next, nothing is set and nothing asked."""
    text = source("var i = 0 repeat { if (i % 2 == 0) { i += 3 } else { i -= 1 } i += 1 } until (i > 10) print(i)")
    assert "while True:" in text and "b =" not in text and "if b" not in text


def test_a_straight_script_is_straight() -> None:
    text = source("var a = 1 if (arg) { a = 2 } else { a = 3 } print(a)")
    assert "while" not in text and "b =" not in text


def test_nothing_of_the_program_is_in_the_source() -> None:
    machine = made('evil = "import os" trace evil:event { evil = evil .. "\\n" print(args.evil) } print(evil)')
    for number in range(len(machine.program.functions)):
        assert "evil" not in machine.translator.translate(number).source


def nested(depth: int) -> str:
    opening = "".join([f"for (i{n} = 1, 2) {{ " for n in range(depth)])
    return f"n = 0 {opening} n += 1 {'}' * depth} print(n)"


@pytest.mark.parametrize("depth", [1, MAX_LOOPS, MAX_LOOPS + 1, 16])
def test_loops_in_loops(depth: int) -> None:
    assert told(nested(depth)) == f"{2**depth}\n"


def test_loops_deeper_than_python_takes() -> None:
    depth = 40
    opening = "".join([f"for (i{n} = {n}, {n}) {{ while (true) {{ " for n in range(depth)])
    closing = "break } n += 1 }" * depth
    assert told(f"n = 0 {opening} n += 100 {closing} print(n)") == f"{100 + depth}\n"


def test_ifs_deeper_than_python_takes() -> None:
    depth = 6 * MAX_INLINED
    text = "n = 0 " + "if (n == 0) { " * depth + "n = 7 " + "}" * depth + " print(n)"
    assert told(text) == "7\n"


def test_many_alternatives() -> None:
    branches = " ".join([f"elseif (x == {n}) {{ print({n}) }}" for n in range(2, 300)])
    for x in (1, 150, 299, 300):
        script = f"x = {x} if (x == 1) {{ print(1) }} {branches} else {{ print('none') }}"
        assert told(script) == (f"{x}\n" if x < 300 else "none\n")


def test_break_and_continue_across_loops() -> None:
    script = """
        var found = {}
        for (i = 1, 9) {
            for (j = 1, 9) {
                if (j == 2) { continue }
                while (true) { if (i > j || j > 100) { break } j += 100 }
                if (j > 100) { break }
                found[i] += j
            }
            if (i == 7) { break }
            if (i == 3) { continue }
            found[i] += 1000
        }
        for (k, v in pairs(found)) { print(k, v) }
    """
    sums: Dict[int, int] = {}
    for i in range(1, 10):
        for j in range(1, 10):
            if j == 2:
                continue
            if i <= j:
                break
            sums[i] = sums.get(i, 0) + j
        if i == 7:
            break
        if i != 3:
            sums[i] = sums.get(i, 0) + 1000
    assert told(script) == "".join([f"{key}\t{value}\n" for key, value in sums.items()])


def test_jumps_into_loops() -> None:
    """A loop that is entered in its middle, and two that overlap."""
    listing = """
        MOVE 0 =0
        MOVE 1 =0
        JUMP @middle
        top: ADD 0 0 =1
        middle: ADD 1 1 =10
        LT 2 0 =3
        JUMPIF 2 @top
        LT 2 1 =100
        JUMPIF 2 @middle
        BUILTIN 3 ='print'
        MOVE 4 0
        MOVE 5 1
        CALL 3 2 0
        RETURN 0 0
    """
    machine = made(program(listing))
    machine.run_main()
    assert printed(machine) == "3\t100\n"


def test_a_loop_around_the_whole_function() -> None:
    listing = """
        top: GETGLOBAL 0 ='n'
        EQ 1 0 =nil
        JUMPIF 1 @first
        ADD 0 0 =1
        SETGLOBAL ='n' 0
        LT 1 0 =5
        JUMPIF 1 @top
        BUILTIN 1 ='print'
        MOVE 2 0
        TAILCALL 1 1
        first: SETGLOBAL ='n' =0
        JUMP @top
    """
    machine = made(program(listing))
    machine.run_main()
    assert printed(machine) == "5\n"


@pytest.mark.parametrize("op, last", [("JUMPIF", 3000), ("JUMPIFNOT", 3000), ("mixed", 2000)])
def test_tangled_code_is_translated_soon(op: str, last: int) -> None:
    """Thousands of jumps back and forth; what the verifier lets pass must not take long."""
    rows = ["GETGLOBAL 0 ='n'"]
    for n in range(1, last):
        if op == "mixed":
            rows.append(f"JUMPIF 0 {(n * 7919) % last}")
        else:
            rows.append(f"{op} 0 {max(0, n - 1500) if n % 2 else min(last - 1, n + 1500)}")
    rows.append("RETURN 0 0")
    candidate = program("\n".join(rows))
    try:
        verify(candidate)
    except Refusal:
        return
    began = time.process_time()
    Translator(candidate).translate(0)
    assert time.process_time() - began < 20


def test_a_large_function() -> None:
    rows = ["MOVE 0 =0", *["ADD 0 0 =1"] * 20_000, "BUILTIN 1 ='print'", "MOVE 2 0", "CALL 1 1 0", "RETURN 0 0"]
    machine = made(program("\n".join(rows)))
    began = time.process_time()
    machine.run_main()
    assert printed(machine) == "20000\n"
    assert time.process_time() - began < 20


# -- places -----------------------------------------------------------------------------------


def test_every_line_has_a_place() -> None:
    machine = made("function f(a) { for (i = 1, a) { if (i > 5) { return i } } return a } print(f(3), f(9))")
    for number, function in enumerate(machine.program.functions):
        translation = machine.translator.translate(number)
        assert len(translation.places) == translation.source.count("\n")
        assert set(translation.places) <= set(range(len(function.code)))
        assert set(range(len(function.code))) - set(translation.places) <= {
            place for place, instruction in enumerate(function.code) if instruction.op == "JUMP"
        }


# -- blocks and kinds -------------------------------------------------------------------------


def test_blocks() -> None:
    function = program("MOVE 0 =1\nJUMPIF 0 @end\nMOVE 0 =2\nJUMP 0\nend: RETURN 0 1").functions[0]
    assert [tuple(block) for block in find_blocks(function.code)] == [(0, 1, 2, 1), (2, 3, 0, None), (4, 4, None, None)]
    flow = find_flow(function)
    assert [(region.first, region.last) for region in flow.regions] == [(0, 2), (0, 1)]
    assert flow.home == (1, 1, 0) and flow.inlined == (False, True, False)


def kinds_at(listing: str, place: int = -1) -> List[str]:
    """The kinds at the beginning of the last block."""
    candidate = program(Listing(listing, registers=6))
    function = candidate.functions[0]
    return infer(function, find_blocks(function.code), candidate.constants)[place]


def test_kinds() -> None:
    start = "MOVE 0 =1\nMOVE 1 ='x'\nMOVE 2 =nil\nNEWTABLE 3\nEQ 4 0 0\nJUMP @next\nnext: RETURN 0 0"
    assert kinds_at(start) == [POSITIVE, STRING, NIL, TABLE, BOOLEAN, ANY]
    assert kinds_at("MOVE 0 =1\nGETGLOBAL 1 ='x'\nJUMPIF 1 @end\nMOVE 0 =-1\nend: RETURN 0 0")[0] == INTEGER
    assert kinds_at("MOVE 0 =1\nGETGLOBAL 1 ='x'\nJUMPIF 1 @end\nMOVE 0 ='s'\nend: RETURN 0 0")[0] == ANY
    assert kinds_at("MOVE 0 =1\nGETGLOBAL 1 ='x'\nADD 0 0 1\nADD 2 0 =1\nJUMP @end\nend: RETURN 0 0")[:3] == [ANY] * 3


def test_no_kinds_in_what_is_too_large() -> None:
    rows = "JUMPIF 0 @end\n" * (MAX_STATE // 6 + 1)
    candidate = program(Listing(f"MOVE 0 =1\n{rows}end: RETURN 0 0", registers=6))
    function = candidate.functions[0]
    assert infer(function, find_blocks(function.code), candidate.constants)[-1] == [ANY] * 6


def test_a_machine_takes_a_function_where_nothing_is_inferred() -> None:
    rows = ["GETGLOBAL 0 ='nothing'", *["JUMPIF 0 @end"] * 2000, "end: RETURN 0 0"]
    machine = made(program(Listing("\n".join(rows), registers=250)), Limits())
    machine.run_main()
    assert printed(machine) == ""

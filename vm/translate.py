"""Translate bytecode to Python: one Python function for each function of the program.

The pieces: `vm.blocks` cuts the code, `vm.infer` finds kinds of values, `vm.templates` says what each
opcode is in Python, `vm.layout` lays it all out, and this module puts a function around it:

    def make3(u0, u1):                      # the boxes of its upvalues
        def call(d, r0=None, r1=None, *rest):
            if d > DEPTH: raise too_deep()
            for _ in calls: break
            else: raise out_of_calls()
            …
        return call

Nothing in the text comes from the program but numbers: strings, and names made of them, are reached
through names such as `c5` (constant 5) in the module's namespace. The line of a traceback leads to the
instruction (`Translation.places`) and so to the place in the script.

What is relied on, because the verifier has made sure of it (`vm.verify`): operands are within range and
constants of the type the opcode table says; a register is written before it is read, on every path, and
holds a value, a box, a pack or an iterator as the reader needs it; FORLOOP's registers are those that
FORPREP has checked, untouched since; jumps stay inside and code does not run off its end; event names are
in `VARIABLES` or start with `args.` or `curtask.`; no function contains itself.
"""

from __future__ import annotations

from typing import List, Tuple

from vm.blocks import find_flow
from vm.infer import infer, step
from vm.layout import Body, Branch, Layout, Text
from vm.named_tuple import NamedTuple
from vm.program import Function, Program
from vm.templates import TEMPLATES
from vm.writer import Writer, canonical_indexes

CALLS = frozenset(("CALL", "CALLX", "TAILCALL", "TAILCALLX", "ITERNEXT"))
"""The opcodes that call functions."""


class Translation(NamedTuple):
    """A function as Python: `source` defines `make<number>`, `places[line - 1]` is the instruction of a line."""

    source: str
    places: Tuple[int, ...]


class Translator:
    """Translates the functions of one program."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.canonical = canonical_indexes(program)

    def translate(self, number: int) -> Translation:
        """Function `number` of the program."""
        function = self.program.functions[number]
        flow = find_flow(function)
        writer = Writer(self.program, self.canonical)
        starts = infer(function, flow.blocks, self.program.constants)
        bodies = []
        for block, kinds in zip(flow.blocks, starts):
            writer.kinds = kinds
            bodies.append(self.write_body(writer, function, block.first, block.last))
        lines = [*head(number, function), *declarations(writer), *Layout(flow, bodies).write(2), ("    return call", 0)]
        return Translation("\n".join([text for text, _ in lines]) + "\n", tuple([place for _, place in lines]))

    def write_body(self, writer: Writer, function: Function, first: int, last: int) -> Body:
        """The instructions of one block."""
        lines: List[Text] = []
        branch = None
        for place in range(first, last + 1):
            instruction = function.code[place]
            writer.lines = []
            written = TEMPLATES[instruction.op](writer, instruction.a, instruction.b, instruction.c)
            if isinstance(written, Branch):
                branch = written
                written = writer.lines
            lines.extend([(text, place) for text in written])
            step(writer.kinds, instruction, self.program.constants)
        return Body(lines, branch, last)


def calls_others(function: Function) -> bool:
    """True for a function that can call: one that cannot takes no part in recursion."""
    return any([instruction.op in CALLS for instruction in function.code])


def head(number: int, function: Function) -> List[Text]:
    """The lines a function begins with."""
    boxes = ", ".join([f"u{n}" for n in range(len(function.upvalues))])
    parameters = "".join([f"r{n}=None, " for n in range(function.parameters)])
    lines = [
        f"def make{number}({boxes}):",
        f"    def call(d, {parameters}*rest):",
        "        if d > DEPTH: raise too_deep()",
    ]
    if calls_others(function):
        lines += ["        for _ in calls: break", "        else: raise out_of_calls()"]
    return [(text, 0) for text in lines]


def declarations(writer: Writer) -> List[Text]:
    """The globals that the function assigns."""
    return [(f"        global {', '.join(sorted(writer.assigned))}", 0)] if writer.assigned else []

"""The opcode table: one row an opcode, read by codegen, verifier, disassembler, translator and tests.

An instruction is an opcode and up to three operands, each a signed 16-bit number. What an operand
means is its kind:

====  =====================================================================================
kind  meaning
====  =====================================================================================
w     register written
v     value read: a register (>= 0) or constant ``~operand`` (< 0)
k     index of a constant (the row says of which type)
n     a count; ``PACK`` (-1) where the row allows "all of them, as a pack"
j     index of an instruction of the same function
u     index of an upvalue
p     index of a function of the program
b     register that holds a box
r     first register of a run of registers, as the row says
====  =====================================================================================

A register holds a value, a box (a variable that a closure shares), or a pack (several values: the
results of a call or the arguments behind ``...``). The verifier keeps the three apart.
"""

from __future__ import annotations

from vm.named_tuple import NamedTuple

PACK = -1
"""The count that stands for "as many as there are, as one pack"."""


class Opcode(NamedTuple):
    """One row: the name, the kinds of its operands, what it does, and the faults it can raise."""

    name: str
    operands: str
    effect: str
    faults: tuple[str, ...] = ()
    jumps: bool = False
    ends: bool = False

    @property
    def number(self) -> int:
        """The opcode's number in an image: its place in the table."""
        return NUMBERS[self.name]


ARITHMETIC = ("type", "divide")

OPCODES: tuple[Opcode, ...] = (
    # values
    Opcode("MOVE", "wv", "w = v"),
    Opcode("NOT", "wv", "w = not v"),
    Opcode("NEG", "wv", "w = -v, wrapping", ("type",)),
    Opcode("BITNOT", "wv", "w = ~v", ("type",)),
    Opcode("ADD", "wvv", "w = v1 + v2, wrapping; nil where either is nil", ("type",)),
    Opcode("SUB", "wvv", "w = v1 - v2, wrapping; nil where either is nil", ("type",)),
    Opcode("MUL", "wvv", "w = v1 * v2, wrapping; nil where either is nil", ("type",)),
    Opcode("DIV", "wvv", "w = v1 / v2, truncated toward zero", ARITHMETIC),
    Opcode("MOD", "wvv", "w = v1 % v2, with the sign of v1", ARITHMETIC),
    Opcode("BAND", "wvv", "w = v1 & v2", ("type",)),
    Opcode("BOR", "wvv", "w = v1 | v2", ("type",)),
    Opcode("BXOR", "wvv", "w = v1 ^ v2", ("type",)),
    Opcode("SHL", "wvv", "w = v1 << (v2 & 63), wrapping", ("type",)),
    Opcode("SHR", "wvv", "w = v1 >> (v2 & 63), logical: zeros come in", ("type",)),
    Opcode("CONCAT", "wvv", "w = v1 .. v2 for strings and integers", ("type", "string", "memory")),
    Opcode("EQ", "wvv", "w = v1 == v2; false across types"),
    Opcode("NE", "wvv", "w = v1 != v2; true across types"),
    Opcode("LT", "wvv", "w = v1 < v2 for two integers or two strings", ("type",)),
    Opcode("LE", "wvv", "w = v1 <= v2 for two integers or two strings", ("type",)),
    # control
    Opcode("JUMP", "j", "continue at j", ("loop",), jumps=True, ends=True),
    Opcode("JUMPIF", "vj", "continue at j unless v is nil or false", ("loop",), jumps=True),
    Opcode("JUMPIFNOT", "vj", "continue at j if v is nil or false", ("loop",), jumps=True),
    Opcode(
        "FORPREP",
        "rj",
        "r, r+1, r+2 hold first, last, step: check them; r+3 = first, or continue at j when there is no round",
        ("type", "step"),
        jumps=True,
    ),
    Opcode(
        "FORLOOP",
        "rj",
        "r += r+2; while not past r+1: r+3 = r and continue at j",
        ("loop",),
        jumps=True,
    ),
    Opcode(
        "ITERPREP",
        "wr",
        "w = an iterator made of r, r+1, r+2: an iterator value (pairs, sort_pairs) or a function, its state, its control",
        ("type",),
    ),
    Opcode(
        "ITERNEXT",
        "rnj",
        "r holds an iterator: r+1 … r+n = its next key (several for a multi-key) and value; continue at j at its end",
        ("type", "loop", "depth"),
        jumps=True,
    ),
    # variables
    Opcode("GETGLOBAL", "wk", "w = global named k (a string)"),
    Opcode("SETGLOBAL", "kv", "global named k (a string) = v"),
    Opcode("GETUP", "wu", "w = the variable in upvalue u"),
    Opcode("SETUP", "uv", "the variable in upvalue u = v"),
    Opcode("BOX", "wv", "w = a new box that holds v"),
    Opcode("UNBOX", "wb", "w = the variable in box b"),
    Opcode("SETBOX", "bv", "the variable in box b = v"),
    # tables
    Opcode("NEWTABLE", "w", "w = {}", ("memory",)),
    Opcode("GETINDEX", "wvv", "w = v1[v2]; also a member of an event or cdata", ("type",)),
    Opcode("GETENTRY", "wvv", "w = v1[v2], 0 where that is missing", ("type",)),
    Opcode("SETINDEX", "vvv", "v1[v2] = v3; nil removes", ("type", "key", "memory")),
    Opcode("ADDINDEX", "vvv", "v1[v2] += v3, a missing entry counting as 0", ("type", "key", "memory")),
    Opcode("SUBINDEX", "vvv", "v1[v2] -= v3, a missing entry counting as 0", ("type", "key", "memory")),
    Opcode("KEY", "wrn", "w = the multi-key of r … r+n-1, n >= 2", ("key",)),
    Opcode(
        "SETLIST",
        "vrn",
        "append r … r+n-1 to table v (n = PACK: the pack in r), from the next free integer key",
        ("memory",),
    ),
    Opcode("SAMPLE", "vvv", "v1[v2] <<< v3, a missing entry being made", ("type", "key", "memory")),
    Opcode("STATADD", "wvv", "w = v1 (nil: a new stats) with the sample v2 added", ("type", "memory")),
    # functions
    Opcode("CLOSURE", "wp", "w = function p over the boxes its upvalue list names", ("memory",)),
    Opcode("BUILTIN", "wk", "w = the builtin named k (a string, such as `string.sub`)"),
    Opcode(
        "CALL",
        "rnn",
        "call r with n1 arguments r+1 …; n2 results into r … (PACK: one pack into r)",
        ("type", "depth"),
    ),
    Opcode("CALLX", "rnn", "as CALL, the last of the n1 arguments being a pack", ("type", "depth")),
    Opcode("TAILCALL", "rn", "return r(r+1 … r+n) without taking stack", ("type",), ends=True),
    Opcode("TAILCALLX", "rn", "as TAILCALL, the last argument being a pack", ("type",), ends=True),
    Opcode("RETURN", "rn", "return r … r+n-1", ends=True),
    Opcode("RETURNX", "rn", "as RETURN, the last being a pack", ends=True),
    Opcode("VARARG", "wn", "w … w+n-1 = the arguments behind `...` (PACK: one pack into w)"),
    # events
    Opcode("EVENT", "wk", "w = the event's value named k (`pid`, `arg1`, `args.filename`, `curtask.pid`)"),
    Opcode("SYMBOL", "wk", "w = the address of kernel symbol k, an integer", ("symbol",)),
    Opcode(
        "PROBE",
        "vkk",
        "set probe k1 (`sched:*`, `tick-1s`, `trace_end`) with filter k2 (a string or nil) and handler v",
    ),
)
NUMBERS = {row.name: number for number, row in enumerate(OPCODES)}
BY_NAME = {row.name: row for row in OPCODES}

"""Fetch arguments: what a probe on a function is to read, in the words of the kernel's kprobe_events.

    arguments = parse_fetch("fd=%di name=+0(%si):string r=+8(+0(%dx)):u16", Context(MACHINES["x86_64"], USER))

Each becomes an expression over the registers (ktap.demand): a `Place` is a register by its offset in
pt_regs, a `Read` is memory. Source: Documentation/trace/kprobetrace.rst, "Synopsis of kprobe_events" and
"Types"; Documentation/trace/uprobetracer.rst.
"""

from __future__ import annotations

import re
from typing import Callable, List, Optional, Sequence, Tuple

from ktap.demand import (
    BYTES,
    KERNEL,
    STRING,
    USER,
    Binary,
    Expression,
    Number,
    Passed,
    Place,
    Read,
    Symbol,
    Text,
    Value,
)
from ktap.registers import WORD_BYTES, Machine, Part, argument_register, argument_slot
from vm.named_tuple import NamedTuple
from vm.values import wrap

MOST_ELEMENTS = 64
"""Of an array (MAX_ARRAY_LEN)."""
MOST_STRING_BYTES = 4096
MOST_CONSTANT_BYTES = 255
MOST_ARGUMENTS = 128
"""Of one event (MAX_TRACE_ARGS)."""
KEEP = "keep it by thread at the entry, as in t[tid] = arg1"
COMM = Value("execname")
"""`$comm`: the name of the running task."""
TEXT, COMMAND, INTEGER = "text", "command", "integer"
"""What the kernel calls string, `$comm`, and everything else."""


class Shape(NamedTuple):
    """A type: how many bytes, and how they are shown."""

    letter: str
    """`u`, `s`, `x`, `c` (char), `b` (bit field), `S` (string), `y` (symbol), `Y` (the same in quotes)."""
    size_bytes: int = WORD_BYTES
    bits: int = 0
    shift: int = 0
    """Of a bit field: its width and its first bit."""
    length: int = 0
    """Elements of an array, 0 for none; one of strings is of pointers to them."""
    user: bool = False
    """Of a string: it is the process's wherever the pointer comes from."""


class Argument(NamedTuple):
    """One value: its name, what is computed or read, and its type."""

    name: str
    what: Expression
    shape: Shape


class Context(NamedTuple):
    """What the meaning of an argument depends on."""

    machine: Machine
    space: str
    """Whose memory `+8(%di)` is: USER in user probes, EITHER in the kernel's."""
    returns: bool = False
    remembers: bool = False
    """At a function's return, its arguments are known."""
    near: Optional[Callable[[int], Expression]] = None
    """The address that a place of the probed file (`@+0x20`) is loaded at."""
    symbol: Optional[Callable[[str], Optional[int]]] = None
    """The address of a symbol of the kernel, None where there is none of that name."""
    parameters: Sequence[str] = ()
    """Names of the function's parameters, where its types are known."""
    parameter: Optional[Callable[[str, Sequence[str]], Tuple[Expression, Shape]]] = None
    """A parameter, or a member behind it, by names. Raises FetchError."""
    result: Shape = Shape("x")
    """The type of what the function returns."""
    name_of: Optional[Callable[[Expression, str], Read]] = None
    """The name of what a pointer to one of NAMED points at."""


class FetchError(Exception):
    """An argument that cannot be; `position` is where, counted from the start of the text."""

    def __init__(self, message: str, position: int, hint: Optional[str] = None) -> None:
        super().__init__(message)
        self.position = position
        self.hint = hint


NAME = re.compile(r"([A-Za-z_]\w*)=")
NUMBER = re.compile(r"[+-]?(0[xX][0-9a-fA-F]+|\d+)")
SIMPLE = re.compile(r"([usx])(8|16|32|64)$")
PATH = re.compile(r"[A-Za-z_]\w*((?:->|\.)[A-Za-z_]\w*)*")
NAMED = {"%pd": "struct dentry", "%pD": "struct file"}
"""Types that stand for the name of a file."""
QUOTED = re.compile(r'\\"([^"]*)"')
WORD = re.compile(r'(?:\\"[^"]*"|\S)+')
"""Of the kernel's own, the quotes of a constant string hold no blanks."""
NUMBERED = re.compile(r"\$arg(\d+)")
BIT_FIELD = re.compile(r"b(\d+)@(\d+)/(8|16|32|64)$")
TYPES = "types are u8 … u64, s8 … s64, x8 … x64, char, string, ustring, symbol, bWIDTH@OFFSET/SIZE, each with [N]"


def parse_fetch(text: str, context: Context) -> Tuple[Argument, ...]:
    """All arguments of a text. Raises FetchError."""
    found: List[Argument] = []
    for word in WORD.finditer(text):
        if word[0] == "$arg*":
            found += _all_parameters(context, word.start())
            continue
        argument = _Reader(text, word.start(), word.end(), context).argument(len(found) + 1)
        if argument.name in [other.name for other in found]:
            raise FetchError(f"two arguments are called `{argument.name}`", word.start())
        found.append(argument)
    if len(found) > MOST_ARGUMENTS:
        raise FetchError(f"more than {MOST_ARGUMENTS} arguments", 0)
    return tuple(found)


class _Reader:
    """Reads one argument: text[at:end]."""

    def __init__(self, text: str, at: int, end: int, context: Context) -> None:
        self.text = text
        self.at = at
        self.end = end
        self.context = context

    def argument(self, number: int) -> Argument:
        name = NAME.match(self.text, self.at, self.end)
        if name is not None:
            self.at = name.end()
        start = self.at
        known = self._numbered() if name is None else None
        called = name[1] if name is not None else known or f"arg{number}"
        what, shape = self._shaped()
        if known is not None and self.context.parameter is not None:
            what, shape = self.context.parameter(known, ())
        if self._taken(":"):
            if self.text[self.at : self.end] in NAMED:
                return Argument(called, self._name(what), Shape("S", 1))
            shape = self._type(what)
        if self.at != self.end:
            raise FetchError(f"unexpected `{self.text[self.at : self.end]}`", self.at)
        return Argument(called, self._typed(what, shape, start), shape)

    def _numbered(self) -> Optional[str]:
        """The parameter that `$argN` without a name means, where the function's are known."""
        found = NUMBERED.match(self.text, self.at, self.end)
        number = int(found[1]) if found is not None else 0
        parameters = self.context.parameters
        return parameters[number - 1] if 0 < number <= len(parameters) else None

    def _taken(self, sign: str) -> bool:
        if self.text.startswith(sign, self.at, self.end):
            self.at += len(sign)
            return True
        return False

    def _number(self, what: str) -> int:
        found = NUMBER.match(self.text, self.at, self.end)
        if found is None:
            raise FetchError(f"{what} must be a number", self.at)
        self.at = found.end()
        return wrap(int(found[0], 0) if "x" in found[0].lower() else int(found[0]))

    # -- values -----------------------------------------------------------------------------------

    def _shaped(self) -> Tuple[Expression, Shape]:
        """A value and the type that it has where none is written."""
        path = PATH.match(self.text, self.at, self.end)
        if path is not None and self.context.parameter is not None:
            root, *members = re.split(r"->|\.", path[0])
            if root in self.context.parameters:
                try:
                    found = self.context.parameter(root, members)
                except FetchError as error:
                    raise FetchError(str(error), self.at, error.hint) from None
                self.at = path.end()
                return found
        start = self.at
        what = self._value()
        return what, Shape("S", 1) if is_text(what) else self._usual(self.text[start : self.at])

    def _usual(self, text: str) -> Shape:
        """The type of a value that is written so: `$retval` has the function's."""
        return self.context.result if text == "$retval" else Shape("x")

    def _name(self, what: Expression) -> Expression:
        """The string that `%pd` or `%pD` means."""
        start, self.at = self.at, self.end
        kind = NAMED[self.text[start : self.end]]
        if self.context.name_of is None:
            raise FetchError(f"where `{kind}` has its name is not known", start, "the kernel's types (BTF) would tell")
        return self.context.name_of(what, kind)

    def _value(self) -> Expression:
        start = self.at
        sign = self.text[start : start + 1] if start < self.end else ""
        if sign in ("+", "-"):
            return self._memory()
        self.at += 1
        if sign == "%":
            return self._register(start)
        if sign == "$":
            return self._variable(start)
        if sign == "@":
            return self._absolute(start)
        if sign == "\\":
            return self._constant(start)
        self.at = start
        hint = f"its parameters are {', '.join(self.context.parameters)}; " if self.context.parameters else ""
        hint += 'values are %REGISTER, $argN, $retval, $stackN, $comm, +OFFSET(VALUE), @ADDRESS, \\NUMBER and \\"TEXT"'
        raise FetchError(f"no value: `{self.text[start : self.end]}`", start, hint)

    def _constant(self, start: int) -> Expression:
        """`\\5`, `\\"text"`."""
        if not self.text.startswith('"', self.at, self.end):
            return Number(self._number("a constant"))
        quoted = QUOTED.match(self.text, start, self.end)
        if quoted is None:
            raise FetchError('`"` is missing at the end of a constant string', start)
        self.at = quoted.end()
        value = quoted[1].encode("utf-8", "surrogateescape")
        if len(value) > MOST_CONSTANT_BYTES:
            raise FetchError(f"a constant string of more than {MOST_CONSTANT_BYTES} bytes", start)
        return Text(value)

    def _memory(self) -> Expression:
        """`+8(VALUE)`, `-4(VALUE)`, `+u8(VALUE)`."""
        negative = self._taken("-")
        if not negative:
            self._taken("+")
        user = self._taken("u")
        offset = self._number("an offset")
        if not self._taken("("):
            raise FetchError("`(` is missing behind the offset", self.at)
        inner_at = self.at
        inner, _ = self._shaped()
        if is_text(inner):
            raise FetchError(f"{self.text[inner_at : self.at]} is no address", inner_at)
        if not self._taken(")"):
            raise FetchError("`)` is missing", self.at)
        return Read(USER if user else self.context.space, BYTES, _plus(inner, -offset if negative else offset), 8)

    def _word(self) -> str:
        found = re.compile(r"\w*").match(self.text, self.at, self.end)
        assert found is not None
        self.at = found.end()
        return found[0]

    def _register(self, start: int) -> Expression:
        machine, name = self.context.machine, self._word()
        part = machine.registers.get(name) or machine.parts.get(name)
        if part is None:
            raise FetchError(f"no register `%{name}`", start, "registers are " + " ".join(machine.registers))
        return _place(part)

    def _variable(self, start: int) -> Expression:
        machine, name = self.context.machine, self._word()
        if name == "comm":
            return COMM
        if name == "retval":
            if not self.context.returns:
                raise FetchError("$retval is known at a function's return only", start, "add %return to the function")
            return _register(machine, machine.result)
        if name == "stack":
            return _register(machine, machine.stack)
        if name.startswith("stack") and name[5:].isdigit():
            return stack_word(self.context, int(name[5:]))
        if name.startswith("arg") and name[3:].isdigit() and int(name[3:]):
            if self.context.returns and not self.context.remembers:
                raise FetchError(f"${name} is known at a function's entry only", start, KEEP)
            return call_argument(self.context, int(name[3:]))
        raise FetchError(f"no value `${name}`", start, "there are $argN, $retval, $stack, $stackN and $comm")

    def _absolute(self, start: int) -> Expression:
        """`@ADDRESS`, `@+PLACE` (of the file), `@SYMBOL+OFFSET` (of the kernel): the memory there."""
        space = self.context.space
        if self.text.startswith("+", self.at, self.end) and self.context.near is not None:
            return Read(space, BYTES, self.context.near(self._number("a place in the file")), 8)
        if NUMBER.match(self.text, self.at, self.end):
            return Read(space, BYTES, Number(self._number("an address")), 8)
        name = self._word()
        if not name or space == USER:
            raise FetchError("an address, or `+` and a place in the file, must follow `@`", start)
        offset = self._number("an offset") if self.text[self.at : self.at + 1] in ("+", "-") else 0
        if self.context.symbol is None:
            return Read(KERNEL, BYTES, _plus(Symbol(name), offset), 8)
        address = self.context.symbol(name)
        if address is None:
            raise FetchError(f"the kernel has no symbol `{name}`", start)
        return Read(KERNEL, BYTES, Number(wrap(address + offset)), 8)

    # -- types ------------------------------------------------------------------------------------

    def _type(self, what: Expression) -> Shape:
        start = self.at
        name, bracket, rest = self.text[start : self.end].partition("[")
        shape = _shape(name)
        if shape is None:
            raise FetchError(f"no type `{name}`", start, TYPES)
        self.at = self.end
        if not bracket:
            return shape
        at = start + len(name)
        if not rest.endswith("]") or not rest[:-1].isdigit():
            raise FetchError("a number and `]` must follow `[`", at)
        count = int(rest[:-1])
        if not 0 < count <= MOST_ELEMENTS:
            raise FetchError(f"an array has 1 to {MOST_ELEMENTS} elements", at)
        if not isinstance(what, Read):
            raise FetchError("only memory can be an array", at)
        return shape._replace(length=count)

    def _typed(self, what: Expression, shape: Shape, start: int) -> Expression:
        """The expression reading what the type says."""
        if is_text(what):
            if shape.letter != "S":
                raise FetchError(f"{self.text[start : self.end].partition(':')[0]} is a string", start)
            return what
        if shape.letter == "S" and shape.length:
            assert isinstance(what, Read)
            pointer = what._replace(most_bytes=WORD_BYTES)
            return Read(USER if shape.user else self.context.space, STRING, pointer, MOST_STRING_BYTES)
        if shape.letter == "S":
            if not isinstance(what, Read):
                # a value that is itself the address of the string
                return Read(USER if shape.user else self.context.space, STRING, what, MOST_STRING_BYTES)
            return Read(USER if shape.user else what.space, STRING, what.address, MOST_STRING_BYTES)
        if isinstance(what, Read):
            return what._replace(most_bytes=shape.size_bytes * max(1, shape.length))
        return what


def is_text(what: Expression) -> bool:
    """Whether a value is a string by itself."""
    return what == COMM or isinstance(what, Text)


def element(strings: Expression, number: int) -> Expression:
    """One string of an array of them, from 0: the array is one of pointers."""
    assert isinstance(strings, Read) and isinstance(strings.address, Read)
    pointer = strings.address
    return strings._replace(address=pointer._replace(address=_plus(pointer.address, WORD_BYTES * number)))


def _all_parameters(context: Context, position: int) -> List[Argument]:
    """`$arg*`."""
    if context.parameter is None:
        hint = "the kernel's types (BTF) would tell; write $arg1 $arg2 …"
        raise FetchError("the function's parameters are not known", position, hint)
    return [Argument(name, *context.parameter(name, ())) for name in context.parameters]


def _shape(name: str) -> Optional[Shape]:
    """A type by its name; None where there is none."""
    if name in ("string", "ustring"):
        return Shape("S", 1, user=name == "ustring")
    if name == "char":
        return Shape("c", 1)
    if name in ("symbol", "symstr"):
        return Shape("y" if name == "symbol" else "Y")
    simple = SIMPLE.match(name)
    if simple is not None:
        return Shape(simple[1], int(simple[2]) // 8)
    field = BIT_FIELD.match(name)
    if field is None:
        return None
    bits, shift, size = (int(group) for group in field.groups())
    return Shape("b", size // 8, bits, shift) if bits > 0 and bits + shift <= size else None


# -- what calls put where -------------------------------------------------------------------------


def _plus(expression: Expression, offset: int) -> Expression:
    return Binary("ADD", expression, Number(offset)) if offset else expression


def _place(part: Part) -> Place:
    return Place(part.offset, part.size_bytes, False)


def _register(machine: Machine, name: str) -> Place:
    return _place(machine.registers[name])


def stack_word(context: Context, number: int) -> Read:
    """`$stackN`."""
    address = _plus(_register(context.machine, context.machine.stack), WORD_BYTES * number)
    return Read(context.space, BYTES, address, WORD_BYTES)


def call_argument(context: Context, number: int) -> Expression:
    """`$argN`: an argument of the call, from 1, at the function's first instruction or behind its last."""
    if context.returns:
        return Passed(number)
    part = argument_register(context.machine, number)
    return _place(part) if part is not None else stack_word(context, argument_slot(context.machine, number))


def call_origin(context: Context) -> Expression:
    """Where the function was called, at its first instruction."""
    machine = context.machine
    return stack_word(context, 0) if machine.link is None else _register(machine, machine.link)


def call_arguments(context: Context, count: int) -> Sequence[Argument]:
    """The first arguments of a call, as `arg1` and so on."""
    return [Argument(f"arg{n}", call_argument(context, n), Shape("s")) for n in range(1, count + 1)]


def result(context: Context) -> Expression:
    """What a function returns."""
    return _register(context.machine, context.machine.result)


def instruction(context: Context) -> Expression:
    """Where the program is."""
    return instruction_of(context.machine)


def instruction_of(machine: Machine) -> Expression:
    """The same for a kind of processor."""
    return _register(machine, machine.instruction)

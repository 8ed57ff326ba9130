"""Fetch arguments: every form becomes the expression it stands for; what is wrong is told in its place."""

from __future__ import annotations

from typing import Sequence, Tuple

import pytest

from ktap.demand import (
    BYTES,
    EITHER,
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
)
from ktap.fetch import COMM, MOST_STRING_BYTES, Context, FetchError, Shape, element, parse_fetch
from ktap.registers import MACHINES

ENTRY = Context(MACHINES["x86_64"], USER)
RETURN = Context(MACHINES["x86_64"], USER, returns=True)
OF_KERNEL = Context(MACHINES["x86_64"], KERNEL)
ARM = Context(MACHINES["aarch64"], USER)


def register(name: str, context: Context = ENTRY) -> Place:
    return Place(context.machine.registers[name].offset, 8, False)


def at(address: Expression, size: int = 8, space: str = USER) -> Read:
    return Read(space, BYTES, address, size)


def string(address: Expression, space: str = USER) -> Read:
    return Read(space, STRING, address, MOST_STRING_BYTES)


def plus(what: Expression, number: int) -> Binary:
    return Binary("ADD", what, Number(number))


DI, SI, DX, SP = register("di"), register("si"), register("dx"), register("sp")
WORD = Shape("x")
PARAMETERS = {"buf": (DI, WORD), "f": (SI, WORD), "count": (DX, Shape("u"))}


def parameter(name: str, members: Sequence[str]) -> Tuple[Expression, Shape]:
    """A function whose parameters are known; a member lies as many bytes behind as there are names."""
    what, shape = PARAMETERS[name]
    return (at(plus(what, len(members)), 4, KERNEL), Shape("u", 4)) if members else (what, shape)


KNOWN = Context(
    MACHINES["x86_64"],
    EITHER,
    symbol={"jiffies": 0x1000}.get,
    parameters=tuple(PARAMETERS),
    parameter=parameter,
    result=Shape("s", 4),
    name_of=lambda what, kind: Read(KERNEL, STRING, what, MOST_STRING_BYTES),
)
REMEMBERS = KNOWN._replace(
    returns=True, remembers=True, parameter=lambda name, _: (Passed(list(PARAMETERS).index(name) + 1), WORD)
)
FORMS = [
    ("%di", ENTRY, "arg1", DI, WORD),
    ("fd=%di", ENTRY, "fd", DI, WORD),
    ("fd=%rdi:s32", ENTRY, "fd", DI, Shape("s", 4)),
    ("$arg1", ENTRY, "arg1", DI, WORD),
    ("$arg6:u8", ENTRY, "arg1", register("r9"), Shape("u", 1)),
    ("$arg7", ENTRY, "arg1", at(plus(SP, 8)), WORD),
    ("$arg1", ARM, "arg1", register("x0", ARM), WORD),
    ("$arg8", ARM, "arg1", register("x7", ARM), WORD),
    ("$arg9", ARM, "arg1", at(register("sp", ARM)), WORD),
    ("%lr", ARM, "arg1", register("x30", ARM), WORD),
    ("$stack", ENTRY, "arg1", SP, WORD),
    ("$stack0", ENTRY, "arg1", at(SP), WORD),
    ("$stack2:u16", ENTRY, "arg1", at(plus(SP, 16), 2), Shape("u", 2)),
    ("r=$retval:x32", RETURN, "r", register("ax"), Shape("x", 4)),
    ("$retval", RETURN._replace(machine=MACHINES["aarch64"]), "arg1", register("x0", ARM), WORD),
    ("c=$comm", ENTRY, "c", COMM, Shape("S", 1)),
    ("c=$comm:string", ENTRY, "c", COMM, Shape("S", 1)),
    ("\\5", ENTRY, "arg1", Number(5), WORD),
    ("\\-0x10:s64", ENTRY, "arg1", Number(-16), Shape("s")),
    ("+0(%si)", ENTRY, "arg1", at(SI), WORD),
    ("-8(%si):u32", ENTRY, "arg1", at(plus(SI, -8), 4), Shape("u", 4)),
    ("+8(+0x10(%si)):u8", ENTRY, "arg1", at(plus(at(plus(SI, 16)), 8), 1), Shape("u", 1)),
    ("+0(%si):string", ENTRY, "arg1", Read(USER, STRING, SI, MOST_STRING_BYTES), Shape("S", 1)),
    ("+0(%si):string", OF_KERNEL, "arg1", Read(KERNEL, STRING, SI, MOST_STRING_BYTES), Shape("S", 1)),
    ("+0(%si):ustring", OF_KERNEL, "arg1", Read(USER, STRING, SI, MOST_STRING_BYTES), Shape("S", 1, user=True)),
    ("+u0(%si):string", OF_KERNEL, "arg1", Read(USER, STRING, SI, MOST_STRING_BYTES), Shape("S", 1)),
    ("+u8(%si)", OF_KERNEL, "arg1", at(plus(SI, 8)), WORD),
    ("+0(+0(%si)):string", ENTRY, "arg1", Read(USER, STRING, at(SI), MOST_STRING_BYTES), Shape("S", 1)),
    ("+0(%si):u8[4]", ENTRY, "arg1", at(SI, 4), Shape("u", 1, length=4)),
    ("+0(%si):string[2]", ENTRY, "arg1", string(at(SI)), Shape("S", 1, length=2)),
    ("+u8(%si):string[2]", OF_KERNEL, "arg1", string(at(plus(SI, 8)), KERNEL), Shape("S", 1, length=2)),
    ("+0(%si):ustring[2]", OF_KERNEL, "arg1", string(at(SI, space=KERNEL)), Shape("S", 1, length=2, user=True)),
    ('\\"a text"', ENTRY, "arg1", Text(b"a text"), Shape("S", 1)),
    ('t=\\"":string', ENTRY, "t", Text(b""), Shape("S", 1)),
    ("+0(%si):x64[3]", ENTRY, "arg1", at(SI, 24), Shape("x", 8, length=3)),
    ("+0(%si):b3@2/32", ENTRY, "arg1", at(SI, 4), Shape("b", 4, 3, 2)),
    ("%di:b8@8/16", ENTRY, "arg1", DI, Shape("b", 2, 8, 8)),
    ("%di:char", ENTRY, "arg1", DI, Shape("c", 1)),
    ("%di:symbol", ENTRY, "arg1", DI, Shape("y")),
    ("%di:symstr", ENTRY, "arg1", DI, Shape("Y")),
    ("+0(%si):b3@2/16[4]", ENTRY, "arg1", at(SI, 8), Shape("b", 2, 3, 2, 4)),
    ("@jiffies:u64", KNOWN, "arg1", at(Number(0x1000), 8, KERNEL), Shape("u")),
    ("@jiffies-8:u32", KNOWN, "arg1", at(Number(0xFF8), 4, KERNEL), Shape("u", 4)),
    ("count", KNOWN, "arg1", DX, Shape("u")),
    ("n=count:u8", KNOWN, "n", DX, Shape("u", 1)),
    ("$arg3", KNOWN, "count", DX, Shape("u")),
    ("$arg3:u8", KNOWN, "count", DX, Shape("u", 1)),
    ("n=$arg3", KNOWN, "n", DX, WORD),
    ("$arg2", REMEMBERS, "f", Passed(2), WORD),
    ("n=+8($arg2):u8", REMEMBERS, "n", at(plus(Passed(2), 8), 1, EITHER), Shape("u", 1)),
    ("+0(buf):string", KNOWN, "arg1", Read(EITHER, STRING, DI, MOST_STRING_BYTES), Shape("S", 1)),
    ("f->inode.ino", KNOWN, "arg1", at(plus(SI, 2), 4, KERNEL), Shape("u", 4)),
    ("$arg1:%pD", KNOWN, "buf", Read(KERNEL, STRING, DI, MOST_STRING_BYTES), Shape("S", 1)),
    ("$retval", KNOWN._replace(returns=True), "arg1", register("ax"), Shape("s", 4)),
    ("@0x1000:u32", ENTRY, "arg1", at(Number(0x1000), 4), Shape("u", 4)),
    ("@jiffies:u64", OF_KERNEL, "arg1", at(Symbol("jiffies"), 8, KERNEL), Shape("u")),
    ("@jiffies+8", OF_KERNEL, "arg1", at(plus(Symbol("jiffies"), 8), 8, KERNEL), WORD),
]


@pytest.mark.parametrize("text, context, name, meaning, shape", FORMS)
def test_forms(text: str, context: Context, name: str, meaning: Expression, shape: Shape) -> None:
    (argument,) = parse_fetch(text, context)
    assert argument == (name, meaning, shape)


def test_several_are_numbered() -> None:
    assert [argument.name for argument in parse_fetch("%di  n=%si %dx", ENTRY)] == ["arg1", "n", "arg3"]


def test_strings_of_an_array_lie_where_its_pointers_do() -> None:
    (argument,) = parse_fetch("+8(%si):string[2]", ENTRY)
    assert element(argument.what, 0) == string(at(plus(SI, 8)))
    assert element(argument.what, 1) == string(at(plus(plus(SI, 8), 8)))


def test_all_parameters_at_once() -> None:
    assert [argument.name for argument in parse_fetch("c=$comm $arg*", KNOWN)] == ["c", *PARAMETERS]
    with pytest.raises(FetchError, match="parameters are not known"):
        parse_fetch("$arg*", ENTRY)


def test_a_place_in_the_probed_file() -> None:
    context = ENTRY._replace(near=lambda offset: Number(0x40000 + offset))
    (argument,) = parse_fetch("@+0x20:u16", context)
    assert argument.what == at(Number(0x40020), 2)


WRONG = [
    ("%dii", ENTRY, 0, "no register `%dii`"),
    ("a=%di b=%xmm0", ENTRY, 8, "no register `%xmm0`"),
    ("fd=di", ENTRY, 3, "no value: `di`"),
    ("fd=", ENTRY, 3, "no value"),
    ("$retval", ENTRY, 0, "at a function's return only"),
    ("$arg1", RETURN, 0, "at a function's entry only"),
    ("$nosuch", ENTRY, 0, "no value `$nosuch`"),
    ("+8%di", ENTRY, 2, "`(` is missing"),
    ("+8(%di", ENTRY, 6, "`)` is missing"),
    ("+x(%di)", ENTRY, 1, "an offset must be a number"),
    ("%di:u24", ENTRY, 4, "no type `u24`"),
    ("%di:b9@0/8", ENTRY, 4, "no type `b9@0/8`"),
    ("%di:u8[4]", ENTRY, 6, "only memory can be an array"),
    ("+0(%di):u8[65]", ENTRY, 10, "an array has 1 to 64 elements"),
    ("+0(%di):u8[x]", ENTRY, 10, "a number and `]`"),
    ("%di:string[2]", ENTRY, 10, "only memory can be an array"),
    ('a=\\"text', ENTRY, 2, '`"` is missing'),
    ('\\"a b":u8', ENTRY, 0, '\\"a b" is a string'),
    ('+0(\\"text")', ENTRY, 3, '\\"text" is no address'),
    ('\\"' + 300 * "x" + '"', ENTRY, 0, "more than 255 bytes"),
    ("a=%di a=%si", ENTRY, 6, "two arguments are called `a`"),
    ("$comm:u8", ENTRY, 0, "$comm is a string"),
    ("+0($comm)", ENTRY, 3, "$comm is no address"),
    ("@name", ENTRY, 0, "must follow `@`"),
    ("%di)", ENTRY, 3, "unexpected `)`"),
    ("\\x", ENTRY, 1, "a constant must be a number"),
    ("@nothing", KNOWN, 0, "no symbol `nothing`"),
    ("%di:%pD", ENTRY, 4, "where `struct file` has its name is not known"),
    ("bufs", KNOWN, 0, "no value: `bufs`"),
]


@pytest.mark.parametrize("text, context, position, what", WRONG)
def test_what_is_wrong(text: str, context: Context, position: int, what: str) -> None:
    with pytest.raises(FetchError) as caught:
        parse_fetch(text, context)
    assert what in str(caught.value)
    assert caught.value.position == position

"""The ffi library: members of structures, of the event's memory and of bytes a script holds."""

from __future__ import annotations

import ctypes
import sys
from typing import Dict, Optional, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_machine import MadeUpEvent, SmallMachine

from vm.cdata import Buffer
from vm.declaration import Declarations
from vm.fault import Fault
from vm.limits import Limits
from vm.values import Address, Cdata

PLACE = 0xFFFF888000001000
SIGNED_PLACE = PLACE - (1 << 64)

DECLARED = b"""
enum colour { RED, GREEN = 5 };
typedef unsigned int flags_t;
struct leaf { short low; unsigned char high; };
struct node {
    int number;
    unsigned int big;
    char name[8];
    struct node *next;
    char *text;
    struct leaf leaf;
    struct { u8 inner; };
    enum colour colour;
    u16 list[4];
    struct leaf leaves[2];
    double ratio;
    signed int a : 3;
    unsigned int b : 5;
    unsigned int c : 20;
    bool yes;
    void *nothing;
};
"""


class Leaf(ctypes.Structure):
    _fields_ = (("low", ctypes.c_short), ("high", ctypes.c_ubyte))


class Node(ctypes.Structure):
    _fields_ = (
        ("number", ctypes.c_int),
        ("big", ctypes.c_uint),
        ("name", ctypes.c_char * 8),
        ("next", ctypes.c_void_p),
        ("text", ctypes.c_void_p),
        ("leaf", Leaf),
        ("inner", ctypes.c_uint8),
        ("colour", ctypes.c_uint),
        ("list", ctypes.c_uint16 * 4),
        ("leaves", Leaf * 2),
        ("ratio", ctypes.c_double),
        ("a", ctypes.c_int, 3),
        ("b", ctypes.c_uint, 5),
        ("c", ctypes.c_uint, 20),
        ("yes", ctypes.c_bool),
        ("nothing", ctypes.c_void_p),
    )


NODE = Node(
    -5, 0xFFFFFFFF, b"name", PLACE, PLACE + 16, Leaf(-2, 200), 9, 5, (ctypes.c_uint16 * 4)(1, 2, 3, 65535),
    (Leaf * 2)(Leaf(1, 2), Leaf(3, 4)), 1.5, -3, 17, 0x9_5678, True, 0,
)  # fmt: skip


class Memory(MadeUpEvent):
    """An event that captured all bytes of a region, at any place in it."""

    def __init__(self, content: bytes, place: int = PLACE, space: str = "kernel") -> None:
        super().__init__()
        self.content = content
        self.place = place
        self.space = space

    def memory(self, space: str, kind: str, address: int, size: int) -> Optional[bytes]:
        start = address - self.place
        if (space, kind) != (self.space, "bytes") or not 0 <= start < len(self.content):
            raise LookupError
        return self.content[start : start + size]


@pytest.fixture
def machine() -> SmallMachine:
    machine = SmallMachine()
    machine.run("ffi.cdef", DECLARED)
    machine.event = Memory(bytes(NODE))
    return machine


def node_in(machine: SmallMachine) -> Cdata:
    found = machine.run("ffi.cast", b"struct node *", SIGNED_PLACE)
    assert isinstance(found, Cdata)
    return found


def member(pointer: object, *names: object) -> object:
    for name in names:
        assert isinstance(pointer, Cdata)
        pointer = pointer.member(name)
    return pointer


VALUES: Dict[Tuple[object, ...], object] = {
    (b"number",): -5,
    (b"big",): 0xFFFFFFFF,
    (b"name",): b"name",
    (b"leaf", b"low"): -2,
    (b"leaf", b"high"): 200,
    (b"inner",): 9,
    (b"colour",): 5,
    (b"list", 0): 1,
    (b"list", 3): 65535,
    (b"leaves", 1, b"low"): 3,
    (b"next", b"number"): -5,
    (b"next", b"next", b"big"): 0xFFFFFFFF,
    (b"text", 0): 0,
    (b"a",): -3,
    (b"b",): 17,
    (b"c",): 0x9_5678,
    (b"yes",): 1,
    (b"nothing",): None,
    (0, b"number"): -5,
}


@pytest.mark.parametrize("path", VALUES)
def test_members_of_the_events_memory(machine: SmallMachine, path: Tuple[object, ...]) -> None:
    assert member(node_in(machine), *path) == VALUES[path]


@pytest.mark.parametrize("path", [path for path in VALUES if path[0] not in (b"next", b"text")])
def test_members_of_bytes_a_script_holds(machine: SmallMachine, path: Tuple[object, ...]) -> None:
    machine.event = None
    assert member(machine.run("ffi.new", b"struct node", bytes(NODE)), *path) == VALUES[path]


def test_pointers_in_bytes_lead_to_the_events_memory(machine: SmallMachine) -> None:
    held = machine.run("ffi.new", b"struct node", bytes(NODE))
    assert member(held, b"next", b"number") == -5
    machine.event = None
    with pytest.raises(Fault) as caught:
        member(held, b"next", b"number")
    assert caught.value.kind == "event"


def test_what_print_shows(machine: SmallMachine) -> None:
    node = node_in(machine)
    assert machine.printed("print", node) == b"struct node * 0xffff888000001000\n"
    assert machine.printed("print", member(node, b"leaf")).startswith(b"struct leaf * 0xffff8880000010")
    assert machine.printed("print", member(node, b"list")).startswith(b"u16 * 0x")
    assert machine.printed("print", member(node, b"text")) == b"char * 0xffff888000001010\n"
    assert machine.run("tonumber", node) == SIGNED_PLACE


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ((b"other",), "`struct node` has no member `other`"),
        ((b"",), "`struct node` has no member ``"),
        ((True,), "`struct node` has no members"),
        ((None,), "`struct node` has no members"),
        ((b"ratio",), "a `double` cannot be read"),
        ((b"text", b"x"), "`char` has no members"),
    ],
)
def test_what_there_is_not(machine: SmallMachine, path: Tuple[object, ...], message: str) -> None:
    with pytest.raises(Fault) as caught:
        member(node_in(machine), *path)
    assert caught.value.kind == "argument"
    assert caught.value.message.startswith(message)


def test_pointers_to_pointers_to_nothing_and_to_the_unknown(machine: SmallMachine) -> None:
    pointers = machine.run("ffi.cast", b"struct node **", SIGNED_PLACE + Node.next.offset)
    assert member(pointers, 0, b"number") == -5
    with pytest.raises(Fault, match=r"has no members: p\[0\] is what it points at"):
        member(pointers, b"number")
    for type, message in ((b"void *", "`void` has no size"), (b"struct gone *", "`struct gone` is not declared")):
        with pytest.raises(Fault, match=message):
            member(machine.run("ffi.cast", type, SIGNED_PLACE), 0)
    machine.run("ffi.cdef", b"struct odd { int (*call)(void); };")
    called = member(machine.run("ffi.cast", b"struct odd *", SIGNED_PLACE), b"call")
    with pytest.raises(Fault, match="has no size"):
        member(called, 0)


def test_memory_that_cannot_be_read(machine: SmallMachine) -> None:
    class Unreadable(MadeUpEvent):
        def memory(self, space: str, kind: str, address: int, size: int) -> Optional[bytes]:
            return b"x" if size > 1 else None

    machine.event = Unreadable()
    node = node_in(machine)
    for path in ((b"number",), (b"name",), (b"next",), (b"c",), (b"inner",)):
        assert member(node, *path) is None


def test_what_was_not_captured(machine: SmallMachine) -> None:
    far = machine.run("ffi.cast", b"int *", SIGNED_PLACE + 4096)
    with pytest.raises(Fault) as caught:
        member(far, 0)
    assert caught.value.kind == "event"


def test_user_memory(machine: SmallMachine) -> None:
    machine.event = Memory((7).to_bytes(4, sys.byteorder), 0x5000, "user")
    for p in (0x5000, Address(0x5000, 42)):
        assert member(machine.run("ffi.cast", b"int *", p), 0) == 7


@given(st.integers(-(1 << 63), (1 << 63) - 1))
def test_casts_to_integers(number: int) -> None:
    machine = SmallMachine()
    for name, type in (
        ("char", ctypes.c_byte),
        ("unsigned short", ctypes.c_ushort),
        ("int", ctypes.c_int),
        ("u8", ctypes.c_ubyte),
    ):
        assert machine.run("ffi.cast", name.encode(), number) == type(number).value
    for name in ("long", "u64"):
        assert machine.run("ffi.cast", name.encode(), number) == number


def test_casts(machine: SmallMachine) -> None:
    assert machine.run("ffi.cast", b"struct node *", None) is None
    again = machine.run("ffi.cast", b"int *", node_in(machine))
    assert member(again, 0) == -5
    with pytest.raises(Fault, match=r"^ffi.cast: `struct node` is neither a pointer nor an integer type"):
        machine.run("ffi.cast", b"struct node", 1)


def test_sizes(machine: SmallMachine) -> None:
    assert machine.run("ffi.sizeof", b"struct node") == ctypes.sizeof(Node)
    assert machine.run("ffi.sizeof", b"flags_t[3]") == 12
    with pytest.raises(Fault, match="`struct gone` is not declared") as caught:
        machine.run("ffi.sizeof", b"struct gone")
    assert caught.value.hint == "declare it with ffi.cdef"


def test_new(machine: SmallMachine) -> None:
    zeros = machine.run("ffi.new", b"struct node")
    assert [member(zeros, name) for name in (b"number", b"name", b"next")] == [0, b"", None]
    assert member(machine.run("ffi.new", b"u16[2]", b"\1\0\2\0"), 0, 1) == int.from_bytes(b"\2\0", sys.byteorder)
    assert member(zeros, 1, b"number") is None
    small = SmallMachine(Limits(string_bytes=100))
    with pytest.raises(Fault) as caught:
        small.run("ffi.new", b"char[101]")
    assert caught.value.kind == "string"


def test_buffers() -> None:
    buffer = Buffer(b"abcd")
    assert buffer.read(1, 2) == b"bc"
    assert [buffer.read(*place) for place in ((3, 2), (-1, 2), (5, 0))] == [None, None, None]


def test_functions_of_the_kernel_are_not_called(machine: SmallMachine) -> None:
    namespace = machine.library["ffi.C"]
    assert member(namespace, b"GREEN") == 5
    for name, hint in (
        (b"printk", "use print or printf"),
        (b"schedule", "the builtins read and print all that a script may"),
    ):
        with pytest.raises(Fault, match=f"ffi.C.{name.decode()}: no function of the kernel can be called") as caught:
            member(namespace, name)
        assert caught.value.hint == hint
    with pytest.raises(Fault):
        member(namespace, 1)


@pytest.mark.parametrize(
    ("architecture", "pointer_bytes", "signed"),
    [("x86_64", 8, -1), ("aarch64", 8, 255), ("armv7l", 4, 255), ("s390x", 8, 255), ("riscv64", 8, 255)],
)
def test_types_are_those_of_the_architecture(architecture: str, pointer_bytes: int, signed: int) -> None:
    machine = SmallMachine()
    machine.host.architecture = lambda: architecture  # type: ignore[method-assign]
    assert machine.run("ffi.sizeof", b"long") == pointer_bytes
    assert machine.run("ffi.cast", b"char", 255) == signed
    assert isinstance(machine.types, Declarations)

"""C declarations: layouts against ctypes, which lays out as the system's ABI does; texts that are none."""

from __future__ import annotations

import ctypes
from typing import List, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vm.c_types import Array, Float, Function, Integer, Named, Pointer, Structure, Type, Void, show
from vm.declaration import CACHED_NAMES, MOST_TEXT_BYTES, Declarations
from vm.fault import Fault

SCALARS = {
    "char": ctypes.c_byte,
    "unsigned char": ctypes.c_ubyte,
    "short": ctypes.c_short,
    "unsigned short int": ctypes.c_ushort,
    "int": ctypes.c_int,
    "unsigned": ctypes.c_uint,
    "long": ctypes.c_long,
    "long unsigned int": ctypes.c_ulong,
    "long long": ctypes.c_longlong,
    "u16": ctypes.c_uint16,
    "int64_t": ctypes.c_int64,
    "double": ctypes.c_double,
    "float": ctypes.c_float,
    "void *": ctypes.c_void_p,
    "bool": ctypes.c_bool,
}
BIT_TYPES = ["int", "unsigned", "u16", "unsigned char", "long", "long unsigned int"]

PLAIN = st.tuples(st.sampled_from(sorted(SCALARS)), st.integers(0, 5))


def in_both(kind: str, members: List[Tuple[str, int]], packed: bool) -> Tuple[Structure, type]:
    """A structure here and in ctypes. The number of a member: 0 plain, above 0 elements, below 0 bits."""
    lines, fields = "", []
    for place, (name, number) in enumerate(members):
        ctype = SCALARS[name]
        if number < 0:
            lines += f"{name} m{place} : {-number};"
            fields.append((f"m{place}", ctype, -number))
        elif number:
            lines += f"{name} m{place}[{number}];"
            fields.append((f"m{place}", ctype * number))
        else:
            lines += f"{name} m{place};"
            fields.append((f"m{place}", ctype))
    scope = Declarations()
    scope.declare(f"{kind} s {{ {lines} }} {'__attribute__((packed))' if packed else ''};")
    made = scope.find(f"{kind} s")
    assert isinstance(made, Structure)
    base = ctypes.Union if kind == "union" else ctypes.Structure
    return made, type("s", (base,), {"_fields_": fields, **({"_pack_": 1} if packed else {})})


@pytest.mark.parametrize("kind", ["struct", "union"])
@given(st.lists(PLAIN, min_size=1, max_size=8), st.booleans())
def test_layout_of_members(kind: str, members: List[Tuple[str, int]], packed: bool) -> None:
    made, reference = in_both(kind, members, packed)
    assert made.size_bytes == ctypes.sizeof(reference)
    for member in made.members:
        assert member.offset_bits == 8 * getattr(reference, member.name).offset


@given(
    st.sampled_from(BIT_TYPES).flatmap(lambda name: st.lists(st.tuples(st.just(name), st.integers(-8, -1)), min_size=1))
)
def test_layout_of_bit_fields(members: List[Tuple[str, int]]) -> None:
    """Of one type: ctypes joins bit-fields of different types in a way of its own."""
    made, reference = in_both("struct", members, False)
    assert made.size_bytes == ctypes.sizeof(reference)
    for member in made.members:
        place = getattr(reference, member.name)
        assert (member.offset_bits, member.bits) == (8 * place.offset + (place.size & 0xFFFF), place.size >> 16)


def declared(text: str, name: str) -> Type:
    scope = Declarations()
    scope.declare(text)
    return scope.resolve(Named(name))


def offsets(text: str) -> List[Tuple[str, int]]:
    made = declared(text, "struct s")
    assert isinstance(made, Structure)
    return [(member.name, member.offset_bits) for member in made.members] + [("", made.size_bytes)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # As gcc 12 for x86-64 and arm64 lays them out.
        ("struct s { int a:3; int b:30; };", [("a", 0), ("b", 32), ("", 8)]),
        ("struct s { char a; int b:8; int c:17; };", [("a", 0), ("b", 8), ("c", 32 - 32 + 32), ("", 8)]),
        ("struct s { int a:3; int :0; char b; };", [("a", 0), ("b", 32), ("", 8)]),
        ("struct s { int a:3; int :7; int b:2; };", [("a", 0), ("b", 10), ("", 4)]),
        ("struct s { int a:3; char b; };", [("a", 0), ("b", 8), ("", 4)]),
        ("struct s { u8 a:4, b:4; u16 c; } __attribute__((packed));", [("a", 0), ("b", 4), ("c", 8), ("", 3)]),
        ("struct s { int a:20; int b:20; } __attribute__((packed));", [("a", 0), ("b", 20), ("", 5)]),
        ("struct __attribute__((packed)) s { char a; long b; };", [("a", 0), ("b", 8), ("", 9)]),
        ("struct s { char a; char b __attribute__((aligned(8))); };", [("a", 0), ("b", 64), ("", 16)]),
        ("struct s { char a; } __attribute__((aligned(32)));", [("a", 0), ("", 32)]),
        ("struct s { char a; } __attribute__((__aligned__));", [("a", 0), ("", 16)]),
        ("struct s { char a; struct { int b; }; union { char c; long d; } u; };", [("a", 0), ("", 32), ("u", 64), ("", 16)]),
        ("struct s { int n; char rest[]; };", [("n", 0), ("rest", 32), ("", 4)]),
        ("struct s { int n; struct { long z; } rest[0]; };", [("n", 0), ("rest", 64), ("", 8)]),
        ("struct s { struct s *next, *previous; int (*call)(struct s *, int); };", [("next", 0), ("previous", 64), ("call", 128), ("", 24)]),
        ("struct s { char a:4, b:1; short c:9 __attribute__((aligned(8))); };", [("a", 0), ("b", 4), ("c", 64), ("", 16)]),
        ("struct s { int a:3, b:5; long c:40; bool d; void *e; };", [("a", 0), ("b", 3), ("c", 8), ("d", 48), ("e", 64), ("", 16)]),
        ("struct s { long a:62; char b:5; };", [("a", 0), ("b", 64), ("", 16)]),
        ("struct s { };", [("", 0)]),
    ],
)  # fmt: skip
def test_layouts(text: str, expected: List[Tuple[str, int]]) -> None:
    assert offsets(text) == expected


@pytest.mark.parametrize(
    ("text", "shown", "size_bytes"),
    [
        ("int", "int", 4),
        ("unsigned", "unsigned int", 4),
        ("long unsigned int", "unsigned long", 8),
        ("long long", "long long", 8),
        ("signed char", "signed char", 1),
        ("const char *", "char *", 8),
        ("char *const *", "char **", 8),
        ("char *[4]", "char *[4]", 32),
        ("int [2][3]", "int[3][2]", 24),
        ("int (*)(int, ...)", "int (…) *", 8),
        ("u64", "u64", 8),
        ("struct s *", "struct s *", 8),
        ("struct s", "struct s", 16),
        ("struct s[2]", "struct s[2]", 32),
        ("name_t", "char[16]", 16),
        ("volatile pid_t", "pid_t", 4),
        ("long double", "long double", 16),
        ("enum e", "enum e", 4),
        ("__be32", "__be32", 4),
        ("struct { char a; short b; }", "struct", 4),
    ],
)
def test_names_of_types(text: str, shown: str, size_bytes: int) -> None:
    scope = Declarations()
    scope.declare("struct s { long a, b; }; typedef char name_t[16]; enum e { A };")
    type = scope.type_named(text)
    assert (show(scope.resolve(type)), scope.size_bytes(type)) == (shown, size_bytes)


def test_a_type_is_parsed_anew_when_its_name_is_declared_again() -> None:
    scope = Declarations()
    for count in (1, 2):
        scope.declare(f"typedef int t[{count}];")
        assert scope.size_bytes(scope.type_named("t[2]")) == 8 * count
    for number in range(1, CACHED_NAMES + 10):
        assert scope.size_bytes(scope.type_named(f"char[{number}]")) == number
    assert len(scope.named) <= CACHED_NAMES


def test_kinds_of_types() -> None:
    scope = Declarations(pointer_bytes=4, char_signed=False)
    assert scope.resolve(scope.type_named("char")) == Integer("char", 1, False)
    assert scope.size_bytes(scope.type_named("long")) == scope.size_bytes(scope.type_named("void *")) == 4
    assert scope.type_named("double") == Float("double", 8)
    assert scope.type_named("void") == Void()
    assert scope.type_named("int *[2]") == Array(Pointer(Integer("int", 4, True)), 2)


def test_enumerations() -> None:
    scope = Declarations()
    scope.declare(
        "enum e { A, B = 5, C, D = -1, E = B | 16, F = (1 << 4) + 2 * 3, G = sizeof(long), H = ~0, I = 0x10UL, J = 010, };"
        "enum plain { X }; typedef enum { Y = 7 % 4 - 10 / 4 ^ 1 & 3, Z = -7 / 2, W = -7 % 2, V = 256 >> 4 } t;"
    )
    values = {"A": 0, "B": 5, "C": 6, "D": -1, "E": 21, "F": 22, "G": 8, "H": -1, "I": 16, "J": 8}
    assert scope.enumerators == {**values, "X": 0, "Y": 0, "Z": -3, "W": -1, "V": 16}
    assert scope.find("enum e") == Integer("enum e", 4, True)
    assert scope.find("enum plain") == Integer("enum plain", 4, False)
    assert scope.find("t") == Integer("enum", 4, True)


def test_functions_and_variables_are_passed_over() -> None:
    scope = Declarations()
    scope.declare(
        """
        // what a header has
        extern int printk(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
        static inline u64 now(void);  /* over
                                         lines */
        extern int jiffies, *others[3];
        struct only_a_name;
        void (*handler(int))(int);
        ;
        """.replace("        ;\n", "")
    )
    assert set(scope.functions) == {"printk", "now", "handler"}
    assert scope.functions["printk"] == Function(Integer("int", 4, True))


def test_what_the_script_declares_comes_before_what_is_beyond() -> None:
    class Beyond:
        def find(self, name: str) -> Type:
            return Integer(name, 2, False)

    scope = Declarations(Beyond())
    scope.declare("typedef int mine;")
    assert scope.size_bytes(Named("mine")) == 4
    assert scope.size_bytes(Named("struct theirs")) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("struct s { int a; }", "expected a name, found its end"),
        ("struct s { int a }", "expected `,` or `;`, found `}`"),
        ("struct s { int a; ", "expected a type, found its end"),
        ("struct { int a, ; };", "expected a name, found `;`"),
        ("struct s { unknown_t a; };", "`unknown_t` is not declared"),
        ("struct s { struct other a; };", "`struct other` is not declared"),
        ("struct s { struct s again; };", "`struct s` is not declared"),
        ("struct s { void a; };", "`void` has no size"),
        ("struct s { int a:33; };", "a bit-field of 33 bits in `int`"),
        ("struct s { double a:3; };", "a bit-field of 3 bits in `double`"),
        ("struct s { int *a:3; };", "a bit-field of 3 bits in `int *`"),
        ("struct s { int a:0; };", "a bit-field of 0 bits has no name"),
        ("struct s { int a __attribute__((aligned(3))); };", "an alignment of 3"),
        ("struct s { int a[-1]; };", "an array of -1 elements"),
        ("struct;", "a struct needs a name or members"),
        ("enum;", "an enum needs a name or values"),
        ("enum e { 1 };", "expected a name, found `1`"),
        ("enum e { A = };", "expected a number, found `}`"),
        ("enum e { A = 1 / 0 };", "division by zero"),
        ("enum e { A = 09 };", "expected a number, found `09`"),
        ("enum e { A = 99999999999999999999999999 };", "expected a number"),
        ("int short long a;", "`int short long` is no type"),
        ("unsigned float a;", "`unsigned float` is no type"),
        ("signed unsigned a;", "`signed unsigned` is no type"),
        ("int a b;", "expected `,` or `;`, found `b`"),
        ("#define A 1", "`#` is not part of a C declaration"),
        ("int a[" + "(" * 100 + "1" + ")" * 100 + "];", "brackets are nested too deep"),
        ("int a[" + "-" * 100 + "1];", "brackets are nested too deep"),
        ("int " + "(*" * 100 + "a" + ")" * 100 + ";", "brackets are nested too deep"),
        ("struct { " * 100, "brackets are nested too deep"),
        ("int a" + "[1]" * 100 + ";", "an array of too many dimensions"),
        ("int a(", "it ends too early"),
    ],
)
def test_what_is_no_declaration(text: str, message: str) -> None:
    with pytest.raises(Fault) as caught:
        Declarations().declare(text)
    assert caught.value.kind == "argument"
    assert caught.value.message.startswith(f"C declaration: {message}")


@pytest.mark.parametrize(
    ("text", "message"),
    [("int x y", "unexpected `y` after a type"), ("x" * (1 << 21), "the name of a type is longer than 4096 bytes")],
)
def test_what_is_no_type(text: str, message: str) -> None:
    with pytest.raises(Fault, match=message):
        Declarations().type_named(text)


def test_there_is_an_end_to_what_one_script_declares() -> None:
    scope = Declarations()
    with pytest.raises(Fault, match="bytes of declarations"):
        for _ in range(5):
            scope.declare("//" + "x" * (MOST_TEXT_BYTES // 4))


@given(st.text("struct{}*;[]()int,1:=enum \n/a", max_size=80))
def test_any_text_is_taken_or_refused(text: str) -> None:
    scope = Declarations()
    try:
        scope.declare(text)
    except Fault as fault:
        assert fault.kind == "argument"
    assert scope.text_bytes == len(text)

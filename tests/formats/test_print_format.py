"""Texts of events: print formats evaluated on raw records, against what C and the kernel's printf give."""

from __future__ import annotations

import socket
import struct
from typing import Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_format import made

from ktap import print_values
from ktap.c_expression import TYPES, Integer, Unsupported, parse_list, tokens, unescape
from ktap.event_format import parse_format
from ktap.print_format import event_text, field_text

RELEASE = "6.18.0"


class Names:
    """A kernel that is easy to tell apart."""

    def symbol(self, address: int) -> bytes:
        return b"f+0x%x/0x100" % (address & 0xFF)

    def symbol_name(self, address: int) -> bytes:
        return b"f"

    def string(self, address: int) -> bytes:
        return b"string at %x" % address

    def pointer(self, address: int) -> bytes:
        return b"%016x" % (address ^ 0xFF)

    def constant(self, name: str) -> Optional[int]:
        return {"ONE": 1, "MINUS": -1, "LARGE": 1 << 40, "vmemmap_base": 1 << 28, "sizeof(struct page)": 64}.get(name)


FIELDS = (
    "u8 u8@8+1",
    "s8 s8@9+1-",
    "u16 u16@10+2",
    "int i@12+4-",
    "u32 u@16+4",
    "long l@24+8-",
    "u64 ul@32+8",
    "void * p@40+8",
    "char comm[8]@48+8",
    "u8 bytes[16]@56+16",
    "u16 words[4]@72+8",
    "__data_loc char[] str@80+4",
    "__rel_loc char[] rel@84+4",
    "__data_loc u32[] nums@88+4",
    "const char * name@96+8",
    "u64 whole@32+8",
    "u32 half@32+4",
)
BEHIND = 104


def record(**values: object) -> bytes:
    """A raw record of FIELDS; what is not given is zero."""
    raw = bytearray(BEHIND)
    places = {"u8": (8, "B"), "s8": (9, "b"), "u16": (10, "H"), "i": (12, "i"), "u": (16, "I"), "l": (24, "q")}
    places |= {"ul": (32, "Q"), "p": (40, "Q"), "comm": (48, "8s"), "bytes": (56, "16s"), "words": (72, "8s")}
    places |= {"name": (96, "Q")}
    for name, value in values.items():
        if name in places:
            struct.pack_into("=" + places[name][1], raw, places[name][0], value)
    for name, at in (("str", 80), ("nums", 88)):
        data = values.get(name, b"")
        assert isinstance(data, bytes)
        struct.pack_into("=HH", raw, at, len(raw), len(data))
        raw += data
    data = values.get("rel", b"")
    assert isinstance(data, bytes)
    struct.pack_into("=HH", raw, 84, len(raw) - 88, len(data))
    return bytes(raw + data)


def shown(print_format: str, **values: object) -> str:
    event = made(*FIELDS, print_format=print_format)
    text = event_text(event, Names(), RELEASE)
    assert text.fallback is None, text.fallback
    whole = text.show(record(**values)).decode()
    assert whole.startswith("made: ")
    return whole[6:]


def reason(print_format: str) -> Optional[str]:
    return event_text(made(*FIELDS, print_format=print_format), Names(), RELEASE).fallback


@pytest.mark.parametrize(
    ("print_format", "values", "expected"),
    [
        ('"plain 100%%"', {}, "plain 100%"),
        ('"a" "b" " %d" "!", REC->i', {"i": -5}, "ab -5!"),
        # lengths and signs, as the variadic call of C has them
        ('"%d %u", REC->i, REC->i', {"i": -1}, "-1 4294967295"),
        ('"%d %x", REC->u, REC->u', {"u": 0xFFFFFFFE}, "-2 fffffffe"),
        ('"%ld %lu %lx", REC->l, REC->l, REC->l', {"l": -1}, "-1 18446744073709551615 ffffffffffffffff"),
        ('"%d %u", REC->ul, REC->ul', {"ul": 0x1FFFFFFFF}, "-1 4294967295"),
        ('"%x %hhx %hx", REC->s8, REC->s8, REC->s8', {"s8": -1}, "ffffffff ff ffff"),
        ('"%hhd %hd", REC->u, REC->u', {"u": 0x8081}, "-127 -32639"),
        ('"%lld %llu %Lu %zu %zd", REC->l, REC->ul, REC->ul, REC->ul, REC->l', {"l": -2, "ul": 3}, "-2 3 3 3 -2"),
        (
            '"%i|%5d|%-5d|%05d|%+d|% d", REC->i, REC->i, REC->i, REC->i, REC->i, REC->i',
            {"i": 42},
            "42|   42|42   |00042|+42| 42",
        ),
        ('"%#x %#lx %#010x %#X", REC->u, REC->ul, REC->u, REC->u', {"u": 255}, "0xff 0x0 0x000000ff 0XFF"),
        ('"%o %#o %#o", REC->u, REC->u, REC->u8', {"u": 8}, "10 010 0"),
        ('"%.3d|%*d|%-*d|%.*d", REC->u, 6, REC->u, 4, REC->u, 3, REC->u', {"u": 7}, "007|     7|7   |007"),
        ('"%c%c", REC->u8, 66', {"u8": 65}, "AB"),
        # strings
        (
            '"%s|%6s|%-6s|%.2s|", REC->comm, REC->comm, REC->comm, REC->comm',
            {"comm": b"abc\0zz"},
            "abc|   abc|abc   |ab|",
        ),
        ('"%s %s", __get_str(str), __get_rel_str(rel)', {"str": b"one\0", "rel": b"two\0"}, "one two"),
        ('"%.*s", (int)REC->u8, __get_str(str)', {"u8": 2, "str": b"one\0"}, "on"),
        ('"%.*s|", REC->u8, REC->u8 ? __get_str(str) : ((void *)0)', {"u8": 0, "str": b"one\0"}, "|"),
        ('"%s", REC->u8 ? __get_str(str) : NULL_', {}, None),
        ('"%s", REC->u8 ? ((void *)0) : __get_str(str)', {"u8": 1}, "(null)"),
        ('"%s", REC->name', {"name": 0x1234}, "string at 1234"),
        ('"%s%s", REC->i ? "yes" : "no", REC->u ? "+" : ""', {"i": 1}, "yes"),
        ('"%s", __get_str(str)[0] ? " x" : "-"', {"str": b"\0"}, "-"),
        ('"a\\tb\\x41\\101\\"\\\\\\n"', {}, 'a\tbAA"\\\n'),
        # pointers
        ('"%p %px %pK", REC->p, REC->p, REC->p', {"p": 0xFF00}, "000000000000ffff 000000000000ff00 000000000000ffff"),
        ('"%pS %ps %pB", (void *)REC->p, (void *)REC->p, REC->p', {"p": 0x10}, "f+0x10/0x100 f f+0x10/0x100"),
        ('"%pe %pe", REC->p, REC->ul', {"p": (1 << 64) - 2}, "-ENOENT 00000000000000ff"),
        ('"%20ps|%-4ps|", REC->p, REC->p', {}, "                   f|f   |"),
        ('"%pI4 %pi4", REC->bytes, REC->bytes', {"bytes": bytes([127, 0, 0, 1])}, "127.0.0.1 127.000.000.001"),
        (
            '"%pI6c,%pI6", REC->bytes, &REC->bytes',
            {"bytes": bytes(15) + b"\1"},
            "::1,0000:0000:0000:0000:0000:0000:0000:0001",
        ),
        ('"%pi6", REC->bytes', {"bytes": bytes(15) + b"\1"}, "0" * 31 + "1"),
        (
            '"%pM %pm %pMF %pMR", REC->bytes, REC->bytes, REC->bytes, &REC->bytes[0]',
            {"bytes": bytes(range(16))},
            "00:01:02:03:04:05 000102030405 00-01-02-03-04-05 05:04:03:02:01:00",
        ),
        ('"%pU", REC->bytes', {"bytes": bytes(range(16))}, "00010203-0405-0607-0809-0a0b0c0d0e0f"),
        (
            '"%pUl %pUB", REC->bytes, REC->bytes',
            {"bytes": bytes(range(16))},
            "03020100-0504-0706-0809-0a0b0c0d0e0f 00010203-0405-0607-0809-0A0B0C0D0E0F",
        ),
        (
            '"%*ph|%*phC|%*phD|%2phN", 3, REC->bytes, 2, REC->bytes, REC->u8, REC->bytes, REC->bytes',
            {"bytes": bytes(range(16)), "u8": 2},
            "00 01 02|00:01|00-01|0001",
        ),
        ('"%*pbl %*pb", 16, REC->words, 40, REC->words', {"words": b"\x0f\x01\0\0\x80"}, "0-3,8 80,0000010f"),
        ('"%p!", REC->p', {}, "00000000000000ff!"),
        # C
        ('"%d", 1 + 2 * 3 - 4 / 2 % 3', {}, "5"),
        ('"%d", -7 / 2', {}, "-3"),
        ('"%d %d", -7 % 3, REC->i % 3', {"i": -7}, "-1 -1"),
        ('"%d", REC->i / REC->u8', {"i": 5}, "0"),
        ('"%d %d %d", 1 << 3 | 1, 6 & 3 ^ 1, ~0', {}, "9 3 -1"),
        ('"%x", 1U << 31', {}, "80000000"),
        ('"%d", REC->u8 << 4 >> 2', {"u8": 255}, "1020"),
        ('"%lx", REC->ul << REC->u8', {"ul": 3, "u8": 63}, "8000000000000000"),
        ('"%d", REC->i >> 1', {"i": -3}, "-2"),
        ('"%u", REC->u + 1', {"u": 0xFFFFFFFF}, "0"),
        ('"%d", REC->i + 1', {"i": 0x7FFFFFFF}, "-2147483648"),
        ('"%d", REC->u8 + 1', {"u8": 255}, "256"),
        ('"%d", (u8)(REC->u8 + 1)', {"u8": 255}, "0"),
        ('"%d", REC->i < REC->u', {"i": -1, "u": 1}, "0"),
        ('"%d", REC->l < REC->u', {"l": -1, "u": 1}, "1"),
        ('"%d", REC->l < REC->ul', {"l": -1, "ul": 1}, "0"),
        ('"%d%d%d%d%d%d", 1 < 2, 2 <= 1, 1 > 2, 2 >= 2, 1 == 1, 1 != 1', {}, "100110"),
        ('"%d%d%d%d", REC->i && 1, REC->i || 0, !REC->i, !0', {"i": 3}, "1101"),
        ('"%d", !!(REC->u & 4) ? 10 : 20', {"u": 4}, "10"),
        ('"%d", REC->i ? REC->u ? 1 : 2 : 3', {"i": 1}, "2"),
        ('"%d", +REC->s8 - -1', {"s8": -3}, "-2"),
        ("\"%d %d\", 'A', '\\n'", {}, "65 10"),
        (
            '"%d,%d", ((unsigned int) ((REC->u) >> 20)), ((unsigned int) ((REC->u) & ((1U << 20) - 1)))',
            {"u": 0x800005},
            "8,5",
        ),
        ('"%lu", (unsigned long)REC->i', {"i": -1}, "18446744073709551615"),
        ('"%d", ( short)(unsigned)REC->ul', {"ul": 0x18000}, "-32768"),
        ('"%d", (gfp_t)REC->l == (gfp_t)-1', {"l": -1}, "1"),
        ('"%d %d %d", sizeof(u64), sizeof(unsigned short), sizeof(void *)', {}, "8 2 8"),
        ('"%d", (enum thing)REC->i', {"i": 4}, "4"),
        ('"%d", (thing_t)REC->i', {"i": 4}, "4"),
        ('"%x %x", REC->words[1], REC->bytes[3]', {"words": b"\1\0\2\3", "bytes": b"\4\5\6\7"}, "302 7"),
        ('"%x", *REC->words', {"words": b"\1\2"}, "201"),
        ('"%x %d", ((u8 *)REC->words)[1], REC->words[-1]', {"words": b"\1\2"}, "2 0"),
        ('"%x", *(u32 *)REC->bytes', {"bytes": b"\1\2\3\4"}, "4030201"),
        ('"%d", ({ int a = REC->i; int b = 5; a < b ? a : b; })', {"i": 9}, "5"),
        ('"%d %lld %d", ONE, LARGE, MINUS', {}, "1 1099511627776 -1"),
        ('"%lx", (((struct page *)vmemmap_base) + (REC->ul))', {"ul": 3}, "100000c0"),
        ('"%lx", ((u32 *)REC->p) + 2', {"p": 0x10}, "18"),
        ('"%lx %lx", 2 + ((void *)REC->p), ((u32 *)REC->p) - ((u32 *)8)', {"p": 0x10}, "12 8"),
        ('"%lu", 0xffffffffffffffffUL', {}, "18446744073709551615"),
        ('"%lu %d", 0777UL, 010', {}, "511 8"),
        ('"%x %x", REC->whole, REC->half', {"ul": 0x1122334455667788}, "55667788 55667788"),
        ('"%d", __builtin_expect(!!(REC->i), 0) ? 1 : __builtin_constant_p(1)', {"i": 0}, "0"),
        # macros
        ('"%s", __print_flags(REC->u, "|", { 1, "A" }, { 2, "B" }, { 4, "C" })', {"u": 5}, "A|C"),
        ('"%s", __print_flags(REC->u, "|", { 1, "A" }, { 2, "B" })', {"u": 0x19}, "A|0x18"),
        ('"%s", __print_flags(REC->u, "", { 3, "AB" }, { 1, "A" }, { 2, "B" })', {"u": 3}, "AB"),
        ('"%s|", __print_flags(REC->u, "|", { 1, "A" })', {"u": 0}, "|"),
        ('"%s", __print_flags(REC->i, "|", { 1, "A" })', {"i": -1}, "A|0xfffffffffffffffe"),
        (
            '"%s", __print_flags(REC->u, "|", {( unsigned long)((( gfp_t)(((1UL))) << (6))) | (1 << 2), "X"}, { (1UL), "A" })',
            {"u": 0x45},
            "X|A",
        ),
        ('"%s", __print_flags_u64(REC->ul, "|", { 1ULL << 40, "HIGH" })', {"ul": 1 << 40}, "HIGH"),
        ('"%s", __print_symbolic(REC->i, { 0, "ZERO" }, { -1, "MINUS" }, { 0, "AGAIN" })', {"i": -1}, "MINUS"),
        (
            '"%s %s", __print_symbolic(REC->i, { 0, "ZERO" }, { }), __print_symbolic(REC->u8, { 1, "ONE" })',
            {"u8": 3},
            "ZERO 0x3",
        ),
        ('"%s", __print_symbolic_u64(REC->l, { ONE, "ONE" }, { -1, ((void *)0) })', {"l": 1}, "ONE"),
        (
            '"%s %s", __print_hex(REC->bytes, 3), __print_hex_str(REC->bytes, REC->u8)',
            {"bytes": b"\1\xff\3", "u8": 2},
            "01 ff 03 01ff",
        ),
        (
            '"%s", __print_array(__get_dynamic_array(nums), __get_dynamic_array_len(nums) / sizeof(u32), sizeof(u32))',
            {"nums": struct.pack("=II", 1, 255)},
            "{0x1,0xff}",
        ),
        (
            '"%s %s", __print_array(REC->words, 2, 2), __print_dynamic_array(nums, 4)',
            {"words": b"\1\0\2\0", "nums": struct.pack("=I", 7)},
            "{0x1,0x2} {0x7}",
        ),
        (
            '"%llu.%09u", __print_ns_to_secs(REC->ul), __print_ns_without_secs(REC->ul)',
            {"ul": 3_000_000_007},
            "3.000000007",
        ),
        ('"%s", __get_bitmask(nums)', {"nums": b"\x03\0\0\0\0\0\0\x80"}, "80000000,00000003"),
        ('"%s", __get_rel_cpumask(rel)', {"rel": b"\x01\0\0\0"}, "00000001"),
        (
            '"%s", __get_sockaddr(nums)',
            {"nums": struct.pack("=H", socket.AF_INET) + b"\0\x50\x7f\0\0\1"},
            "127.0.0.1:80",
        ),
        ('"%d", __get_rel_dynamic_array_len(rel)', {"rel": b"abc"}, "3"),
    ],
)
def test_print_formats(print_format: str, values: dict[str, object], expected: Optional[str]) -> None:
    if expected is None:
        assert reason(print_format) is not None
    else:
        assert shown(print_format, **values) == expected


@pytest.mark.parametrize(
    ("print_format", "expected"),
    [
        ('"%d", jiffies_to_msecs(REC->i)', "jiffies_to_msecs()"),
        ('"%d", jiffies', "`jiffies`"),
        ('"%d", REC->other', "the field `other`, which the format does not have"),
        ('"%d", role.level', "a member of a structure"),
        ('"%d", REC->p->x', "a member of a structure"),
        ('"%d", REC->', "REC-> without a name"),
        ('"%d", REC->i)', "`)` where `,` is due"),
        ('"%d", (REC->i', "`` where `)` is due"),
        ('"%d", @', "character '@'"),
        ('"%d"', "fewer arguments than the format shows"),
        ('"%n", REC->i', "the conversion %n"),
        ('"%', "character '\"'"),
        ('"50%"', "a format that ends in %"),
        ("REC->i", "no format string"),
        ("", "no format string"),
        ('"%d", sizeof(struct thing)', "sizeof of a type that is not known"),
        ('"%pI4", REC->p', "the memory behind a pointer (%pI4)"),
        ('"%p", REC->comm', "the address of a part of the record (%p)"),
        ('"%pd", REC->p', "the conversion %pd"),
        ('"%pIx", REC->bytes', "the conversion %pIx"),
        ('"%d", REC->comm', "the address of a part of the record"),
        ('"%d", *REC->p', "the memory behind a pointer"),
        ('"%s", __print_flags(REC->u)', "a printing macro with unknown arguments"),
        ('"%s", __print_symbolic(REC->u, 3)', "a table of names of an unknown shape"),
        ('"%s", __print_symbolic(REC->u, { REC->i, "x" })', "a table entry that is not constant"),
        ('"%s", __print_array(REC->words, 1, 3)', "a printing macro with unknown arguments"),
        ('"%s", __get_str(REC->i)', "a dynamic field without a name"),
        ('"%s", REC->i ? "a" : REC->u', "a choice between text and a number"),
        ('"%d", { 1 }', "a braces where a value is due"),
        ('"%d", ' + "(" * 150 + "1" + ")" * 150, "an expression nested too deep"),
        ('"%d", ' + "!" * 150 + "1", "an expression nested too deep"),
        ('"%d", (((struct thing *)REC->p) + (REC->ul))', "arithmetic on a pointer to `struct thing`"),
        ('"%d", ({ int a = 1; })', "`}` where an operand is due"),
    ],
)
def test_what_cannot_be_evaluated(print_format: str, expected: str) -> None:
    assert reason(print_format) == expected


def test_variables_that_double_are_refused() -> None:
    doubling = " ".join(f"long v{n + 1} = v{n} * v{n};" for n in range(40))
    assert reason(f'"%d", ({{ long v0 = REC->l; {doubling} v40; }})') == "an expression that is too long"


def test_fields_where_there_is_no_text() -> None:
    text = event_text(made(*FIELDS[:12], print_format='"%d", jiffies'), Names(), RELEASE)
    raw = record(u8=1, s8=-1, i=-2, p=0xFFFF800000000000, comm=b"me", bytes=b"\1", words=b"\1\0\2", str=b"s\0")
    assert text.show(raw) == (
        b"made: u8=1 s8=-1 u16=0 i=-2 u=0 l=0 ul=0 p=0xffff800000000000 comm=me"
        b" bytes=01000000000000000000000000000000 words={1,2,0,0} str=s"
    )
    assert not text.asks_names
    assert field_text(made())(bytes(8)) == b"made:"


def test_what_asks_the_kernel() -> None:
    def asks(print_format: str) -> bool:
        return event_text(made(*FIELDS, print_format=print_format), Names(), RELEASE).asks_names

    assert asks('"%pS", REC->p') and asks('"%p", REC->p') and asks('"%s", REC->name')
    assert not asks('"%px %d", REC->p, REC->i') and not asks('"%s", REC->comm')


def probe(print_format: str, *fields: str) -> object:
    text = event_text(made(*fields, print_format=print_format), Names(), RELEASE)
    return text.fallback or text.show


def test_probes_of_users() -> None:
    data = "__data_loc char[] s@16+4"
    show = probe(
        '"(%lx) s=\\"%s\\" n=%d%%", REC->__probe_ip, __get_str(s), REC->n',
        "unsigned long __probe_ip@8+8",
        data,
        "int n@20+4-",
    )
    assert callable(show)

    def record(address: int, text: bytes) -> bytes:
        return bytes(8) + struct.pack("=QHHi", address, 24, len(text), -1) + text

    assert show(record(0x401000, b"hi\0")) == b'made: (0x401000) s="hi" n=-1%'
    assert show(record(0x401000, b"")) == b"made: (0x401000) s=(fault) n=-1%"
    assert show(record(0xFFFFFFFF81000010, b"\0")) == b'made: (f+0x10/0x100) s="" n=-1%'
    fields = ("unsigned long __probe_func@8+8", "unsigned long __probe_ret_ip@16+8")
    show = probe('"(%lx <- %lx)", REC->__probe_func, REC->__probe_ret_ip', *fields)
    assert callable(show)
    assert show(bytes(8) + struct.pack("=QQ", 0x10, 0x20)) == b"made: (0x20 <- 0x10)"
    high = 1 << 63
    assert show(bytes(8) + struct.pack("=QQ", high, high + 2)) == b"made: (f+0x2/0x100 <- f)"
    assert probe('"%d", REC->__probe_ip', "unsigned long __probe_ip@8+8") == "the place of a probe"
    assert probe("REC->__probe_ip", "unsigned long __probe_ip@8+8") == "no format string"
    assert probe('"(%lx) %d", REC->__probe_ip', "unsigned long __probe_ip@8+8").startswith("fewer")  # type: ignore[attr-defined]


# -- system calls -----------------------------------------------------------------------------------

ENTER = """name: sys_enter_{name}
ID: 1
format:
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;

\tfield:int __syscall_nr;\toffset:8;\tsize:4;\tsigned:1;
{fields}
print fmt: "x"
"""


def syscall(name: str, *arguments: str, release: str = RELEASE) -> object:
    fields = "".join(
        f"\tfield:int {argument};\toffset:{16 + 8 * at};\tsize:8;\tsigned:0;\n" for at, argument in enumerate(arguments)
    )
    event = parse_format("syscalls", ENTER.format(name="x", fields=fields))._replace(name=f"sys_enter_{name}")
    return event_text(event, Names(), release).show


@pytest.mark.parametrize(
    ("release", "expected"),
    [
        ("6.18.44", b"sys_exit_group(code: 9, b: 0xa, c: 0xffffffffffffffff)"),
        ("6.15.0-rc1", b"sys_exit_group(code: 9, b: 0xa, c: 0xffffffffffffffff)"),
        ("6.12.0+deb", b"sys_exit_group(code: 9, b: a, c: ffffffffffffffff)"),
        ("5.4", b"sys_exit_group(code: 9, b: a, c: ffffffffffffffff)"),
        ("strange", b"sys_exit_group(code: 9, b: a, c: ffffffffffffffff)"),
    ],
)
def test_entries_of_system_calls(release: str, expected: bytes) -> None:
    show = syscall("exit_group", "code", "b", "c", release=release)
    assert callable(show)
    assert show(bytes(16) + struct.pack("=QQQ", 9, 10, (1 << 64) - 1)) == expected


def test_system_calls_without_arguments() -> None:
    show = syscall("getpid")
    assert callable(show)
    assert show(bytes(16)) == b"sys_getpid()"


def test_names_with_percent_signs_are_names() -> None:
    for arguments, expected in (((), b"sys_x%s()"), (("a",), b"sys_x%s(a: 0)")):
        show = syscall("x%s", *arguments)
        assert callable(show)
        assert show(bytes(24)) == expected


def test_exits_of_system_calls() -> None:
    text = "name: sys_exit_read\nID: 1\nformat:\n\tfield:int __syscall_nr;\toffset:8;\tsize:4;\tsigned:1;\n"
    text += '\tfield:long ret;\toffset:16;\tsize:8;\tsigned:1;\n\nprint fmt: "0x%lx", REC->ret\n'
    show = event_text(parse_format("syscalls", text), Names(), RELEASE).show
    assert show(bytes(16) + struct.pack("=q", -2)) == b"sys_read -> 0xfffffffffffffffe"


# -- pieces -----------------------------------------------------------------------------------------


def test_tokens() -> None:
    assert tokens(" a->b \"x\" 'c' 0x1fUL ") == [
        ("word", "a"),
        ("operator", "->"),
        ("word", "b"),
        ("string", '"x"'),
        ("character", "'c'"),
        ("number", "0x1fUL"),
    ]
    assert unescape('"\\a\\b\\f\\v\\e\\q\\r\\0"') == b"\a\b\f\v\x1bq\r\0"
    with pytest.raises(Unsupported):
        parse_list("a $ b")


OPERATORS = ["+", "-", "*", "/", "%", "&", "|", "^", "<", "==", ">="]


@given(
    st.sampled_from(sorted({"u8", "s8", "u16", "int", "u32", "long", "u64"})),
    st.sampled_from(sorted({"u8", "s8", "u16", "int", "u32", "long", "u64"})),
    st.sampled_from(OPERATORS),
    st.integers(-(1 << 63), (1 << 64) - 1),
    st.integers(-(1 << 63), (1 << 64) - 1),
)
def test_arithmetic_is_the_same_folded_and_run(left: str, right: str, operator: str, a: int, b: int) -> None:
    """Constants are folded by other code than the one that runs: both must give the same."""
    first, second = (print_values.wrapped(value, TYPES[kind]) for value, kind in ((a, left), (b, right)))
    fields = ("long a@8+8-", "long b@16+8-")
    run = f'"%lld", (long long)((({left})REC->a) {operator} (({right})REC->b))'
    folded = f'"%lld", (long long)((({left}){_c(first)}) {operator} (({right}){_c(second)}))'
    raw = bytes(8) + struct.pack(
        "=qq", print_values.wrapped(a, Integer(8, True)), print_values.wrapped(b, Integer(8, True))
    )
    texts = [event_text(made(*fields, print_format=text), Names(), RELEASE) for text in (run, folded)]
    assert [text.fallback for text in texts] == [None, None]
    assert texts[0].show(raw) == texts[1].show(raw)


def _c(value: int) -> str:
    return f"({value}L)" if value >= 0 else f"(-{-value}UL)"

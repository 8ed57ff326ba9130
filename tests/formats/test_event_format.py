"""Formats of tracepoints: what their fields are, and how their values are read from raw records."""

from __future__ import annotations

import struct

import pytest
from made_format import made

from ktap import event_format as ef
from ktap.event_format import Field, cut, integer_reader, locate, parse_format, reader
from ktap.tracefs import find


def read(field: str, raw: bytes) -> object:
    return reader(made(field).fields[0], list)(raw)


def test_a_format() -> None:
    event = made("char comm[16]@8+16", "pid_t pid@24+4-", print_format='"a=%d", REC->pid')
    assert (event.group, event.name, event.id, event.print_format) == ("test", "made", 7, '"a=%d", REC->pid')
    assert [field.name for field in event.common] == ["common_type", "common_pid"]
    assert event.fields[0] == Field("comm", "char", 8, 16, False, ef.TEXT, ef.INLINE, 1, "char comm[16]")
    assert event.fields[1] == Field("pid", "pid_t", 24, 4, True, ef.INTEGER, ef.INLINE, 4, "pid_t pid")
    assert event.field("pid") == event.fields[1]
    assert event.field("common_pid") == event.common[1]
    assert event.field("nothing") is None
    assert not event.is_syscall
    assert event._replace(group="syscalls").is_syscall


@pytest.mark.parametrize("text", ["", "name: x\n", "ID: 3\n", "name: a b\nID: 3\n", "name: x\nID: y\n"])
def test_what_is_no_format(text: str) -> None:
    with pytest.raises(ValueError, match="no event format"):
        parse_format("test", text)


@pytest.mark.parametrize(
    ("declaration", "name", "kind", "place", "type_name", "element"),
    [
        ("u64 x@8+8", "x", ef.INTEGER, ef.INLINE, "u64", 8),
        ("bool x@8+1", "x", ef.INTEGER, ef.INLINE, "bool", 1),
        ("enum zone_type x@8+4", "x", ef.INTEGER, ef.INLINE, "enum zone_type", 4),
        ("const char * x@8+8", "x", ef.POINTER, ef.INLINE, "const char *", 8),
        ("const char *x@8+8", "x", ef.POINTER, ef.INLINE, "const char *", 8),
        ("void *const x@8+8", "x", ef.POINTER, ef.INLINE, "void *const", 8),
        ("struct timespec x@8+16", "x", ef.BYTES, ef.INLINE, "struct timespec", 16),
        ("char x[16]@8+16", "x", ef.TEXT, ef.INLINE, "char", 1),
        ("const char x[4]@8+4", "x", ef.TEXT, ef.INLINE, "const char", 1),
        ("char x[]@8+0", "x", ef.TEXT, ef.INLINE, "char", 1),
        ("u8 x[6]@8+6", "x", ef.BYTES, ef.INLINE, "u8", 1),
        ("u16 x[6]@8+12", "x", ef.INTEGERS, ef.INLINE, "u16", 2),
        ("unsigned long args[6]@8+48", "args", ef.INTEGERS, ef.INLINE, "unsigned long", 8),
        ("u32 x[]@8+0", "x", ef.INTEGERS, ef.INLINE, "u32", 4),
        ("int x[TASK_COMM_LEN]@8+16", "x", ef.INTEGERS, ef.INLINE, "int", 4),
        ("__data_loc char[] x@8+4", "x", ef.TEXT, ef.DATA_LOC, "char", 1),
        ("__rel_loc char[] x@8+4", "x", ef.TEXT, ef.REL_LOC, "char", 1),
        ("__data_loc char[][2] x@8+8", "x", ef.TEXTS, ef.DATA_LOC, "char", 1),
        ("__data_loc u64[] x@8+4", "x", ef.INTEGERS, ef.DATA_LOC, "u64", 8),
        ("__data_loc unsigned int[] x@8+4", "x", ef.INTEGERS, ef.DATA_LOC, "unsigned int", 4),
        ("__data_loc __u16[] x@8+4", "x", ef.INTEGERS, ef.DATA_LOC, "__u16", 2),
        ("__data_loc u8[] x@8+4", "x", ef.BYTES, ef.DATA_LOC, "u8", 1),
        ("__data_loc cpumask_t x@8+4", "x", ef.BYTES, ef.DATA_LOC, "cpumask_t", 1),
        ("__data_loc struct thing[] x@8+4", "x", ef.BYTES, ef.DATA_LOC, "struct thing", 1),
    ],
)
def test_what_a_field_is(declaration: str, name: str, kind: str, place: str, type_name: str, element: int) -> None:
    field = made(declaration).fields[0]
    assert (field.name, field.kind, field.place, field.type, field.element_size) == (
        name,
        kind,
        place,
        type_name,
        element,
    )


@pytest.mark.parametrize(
    ("field", "data", "expected"),
    [
        ("u8 x@8+1", b"\xff", 255),
        ("s8 x@8+1-", b"\xff", -1),
        ("u16 x@8+2", b"\xfe\xff", 0xFFFE),
        ("short x@8+2-", b"\xfe\xff", -2),
        ("u32 x@8+4", b"\xff" * 4, 0xFFFFFFFF),
        ("int x@8+4-", b"\xff" * 4, -1),
        ("u64 x@8+8", b"\xff" * 8, -1),
        ("long x@8+8-", b"\xfe" + b"\xff" * 7, -2),
        ("void * x@8+8", struct.pack("=Q", 0xFFFF888000001000), 0xFFFF888000001000 - (1 << 64)),
        ("char x[8]@8+8", b"abc\0defg", b"abc"),
        ("char x[3]@8+3", b"abcd", b"abc"),
        ("char x[]@8+0", b"tail\0rest", b"tail"),
        ("u8 x[4]@8+4", b"\0\1\2\3\4", b"\0\1\2\3"),
        ("struct s x@8+3", b"abcd", b"abc"),
        ("u16 x[2]@8+4", b"\1\0\xff\xff", [1, 65535]),
        ("s32 x[2]@8+8-", b"\1\0\0\0\xff\xff\xff\xff", [1, -1]),
        ("u64 x[1]@8+8", b"\xff" * 8, [-1]),
        ("__data_loc char[] x@8+4", struct.pack("=HH", 12, 5) + b"word\0more", b"word"),
        ("__rel_loc char[] x@8+4", struct.pack("=HH", 1, 3) + b"-abcd", b"abc"),
        ("__data_loc u32[] x@8+4", struct.pack("=HHII", 12, 8, 3, 4), [3, 4]),
        ("__data_loc u32[] x@8+4", struct.pack("=HHI", 12, 6, 3) + b"\1\2", [3]),
        ("__data_loc char[] x@8+4", struct.pack("=HH", 500, 5), b""),
    ],
)
def test_values(field: str, data: bytes, expected: object) -> None:
    assert read(field, bytes(8) + data) == expected


def test_a_record_that_is_too_short() -> None:
    with pytest.raises(struct.error):
        read("u64 x@8+8", bytes(12))


def test_pieces() -> None:
    assert cut(b"a\0b") == b"a"
    assert cut(b"ab") == b"ab"
    assert locate(made("u8 x[4]@2+4").fields[0])(b"abcdefgh") == b"cdef"
    assert integer_reader(1, 2, False)(b"\0\2\1") == 0x102


@pytest.mark.live
def test_every_format_of_this_machine() -> None:
    mounted = find()
    for name in mounted.names():
        event = mounted.format(name)
        assert event.name == name.name
        assert event.id > 0
        assert event.print_format
        lines = [line for line in mounted.format_source(name).split("\n") if line.startswith("\tfield:")]
        assert len(event.common) + len(event.fields) == len(lines)
        end = max(field.offset + field.size for field in event.common + event.fields)
        for field in event.fields:
            assert field.name.isidentifier()
            assert field.declaration.endswith((field.name, "]"))
            reader(field, list)(bytes(end + 8))

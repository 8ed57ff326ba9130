"""Images: what is written is read back, the same every time, and everything else is refused by its reason."""

from __future__ import annotations

import tracemalloc
from binascii import crc32

import pytest
from assembler import Listing, program

from vm.diagnostic import Refusal
from vm.image import HEADER, INSTRUCTION, MAGIC, MAX_IMAGE_BYTES, VERSION, assemble, dump, is_image, load, sections
from vm.opcodes import OPCODES
from vm.program import MAX_COLUMN, Program, Span, Upvalue

CONSTANTS = (None, False, True, 0, 1, -1, 63, 64, -64, -65, 2**63 - 1, -(2**63), b"", b"text", bytes(range(256)))
SMALL = program(
    "BUILTIN 0 ='print'\nCLOSURE 1 1\nCALL 0 1 0\nRETURN 0 0",
    Listing("GETUP 0 0\nRETURN 0 1", 1, 3, False, (Upvalue(True, 4, "größe"), Upvalue(False, 0, "n")), "t.f"),
    constants=CONSTANTS,
    source="print(1)\n",
)


def refused(data: bytes) -> str:
    with pytest.raises(Refusal) as refusal:
        load(data, "a.kpc")
    assert refusal.value.status == 1
    return refusal.value.render()


def replaced(tag: bytes, payload: bytes) -> bytes:
    """SMALL's image with one section another and the checksum right."""
    parts = sections(dump(SMALL))
    assert tag in parts
    return assemble([(name, payload if name == tag else old) for name, old in parts.items()])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"source": None},
        {"source": ""},
        {"source": "bytes that are no UTF-8: \udcff\udc80"},
        {"source_name": "ein/Pfad/größe.kp"},
        {"source_name": "\udcff.kp"},
        {"constants": ()},
        {"functions": ()},
    ],
)
def test_what_is_written_is_read_back(changes: dict[str, object]) -> None:
    written = SMALL._replace(**changes)
    read = load(dump(written))
    assert read == written
    assert list(map(type, read.constants)) == list(map(type, written.constants))


def test_types_survive() -> None:
    read = load(dump(SMALL))
    assert type(read.functions[0].variadic) is bool
    assert type(read.functions[1].upvalues[0].from_register) is bool
    assert all(type(span) is Span for function in read.functions for span in function.spans)


def test_names_of_functions_are_for_people() -> None:
    """The name of a handler has the event in it, which may name a file whose name is no UTF-8."""
    odd = SMALL._replace(functions=(SMALL.functions[0]._replace(name="trace probe:/tmp/\udcff:main"),))
    assert load(dump(odd)).functions[0].name == "trace probe:/tmp/\\udcff:main"


def test_spans_of_every_shape() -> None:
    spans = (
        Span(1, 1, 1, 1),
        Span(1, 1, 1, 1),
        Span(MAX_COLUMN, MAX_COLUMN, MAX_COLUMN, MAX_COLUMN),
        Span(9, 7, 3, 1),
        Span(1, MAX_COLUMN, 1, 2),
    )
    code = SMALL.functions[0].code[:1] * len(spans)
    written = SMALL._replace(functions=(SMALL.functions[0]._replace(code=code, spans=spans),) * 2)
    assert load(dump(written)) == written


def test_the_same_program_gives_the_same_bytes() -> None:
    again = load(dump(SMALL))
    assert dump(again) == dump(SMALL)


def test_instructions_are_eight_bytes_each() -> None:
    code = sections(dump(SMALL))[b"Code"]
    assert len(code) == 8 * sum(len(function.code) for function in SMALL.functions)
    names = [OPCODES[row[0]].name for row in INSTRUCTION.iter_unpack(code)]
    assert names == [i.op for function in SMALL.functions for i in function.code]


def test_the_source_is_the_only_thing_stripping_takes() -> None:
    assert set(sections(dump(SMALL))) - set(sections(dump(SMALL._replace(source=None)))) == {b"text"}


def test_is_image() -> None:
    assert is_image(dump(SMALL))
    assert is_image(MAGIC)
    assert not is_image(b"print(1)")
    assert not is_image(b"")


@pytest.mark.parametrize("data", [b"", b"\x89", b"print(1)\n", b"\x7fELF" + bytes(100), MAGIC[:-1], MAGIC.lower()])
def test_not_an_image(data: bytes) -> None:
    assert refused(data) == "a.kpc: not a ktap image"


def test_every_truncation_is_refused() -> None:
    image = dump(SMALL)
    for size in range(len(MAGIC), len(image)):
        assert f"truncated at {size}" in refused(image[:size])


def test_every_changed_bit_is_refused() -> None:
    image = dump(SMALL)
    for place in range(len(image)):
        for bit in range(8):
            refused(image[:place] + bytes([image[place] ^ 1 << bit]) + image[place + 1 :])


def test_a_changed_byte_fails_the_checksum() -> None:
    image = bytearray(dump(SMALL))
    image[-1] ^= 1
    assert refused(bytes(image)) == "a.kpc: its checksum does not match: the file is damaged"


def test_bytes_behind_the_end() -> None:
    assert refused(dump(SMALL) + b"..") == "a.kpc: 2 bytes too many behind its end"


def test_versions() -> None:
    parts = list(sections(dump(SMALL)).items())
    newer = f"a.kpc: made by a newer ktap: image version {VERSION + 1}, this ktap reads {VERSION}"
    assert refused(assemble(parts, VERSION + 1)) == newer
    assert "made by an older ktap" in refused(assemble(parts, VERSION - 1))


def test_the_opcode_table_belongs_to_the_version() -> None:
    """Images name opcodes by their place: whoever changes places or operands raises VERSION and then this number."""
    table = ";".join(f"{row.name} {row.operands}" for row in OPCODES)
    assert (VERSION, crc32(table.encode())) == (1, TABLE_CHECKSUM)


TABLE_CHECKSUM = 1466973630


def test_unknown_sections() -> None:
    parts = list(sections(dump(SMALL)).items())
    assert load(assemble([*parts, (b"note", b"anything")])) == SMALL
    assert load(assemble([(b"zzzz", b""), *parts])) == SMALL
    needs = "a.kpc: made by a newer ktap: it needs a section 'Ebpf' that this ktap does not know"
    assert refused(assemble([*parts, (b"Ebpf", b"")])) == needs
    assert "it needs a section '\\x00\\xff\\x1b[' that" in refused(assemble([*parts, (b"\0\xff\x1b[", b"")]))


def test_sections_in_any_order() -> None:
    parts = list(sections(dump(SMALL)).items())
    assert load(assemble(parts[::-1])) == SMALL


@pytest.mark.parametrize("tag", [b"Name", b"Pool", b"Func", b"Code", b"Line"])
def test_missing_and_doubled_sections(tag: bytes) -> None:
    parts = list(sections(dump(SMALL)).items())
    name = tag.decode()
    assert refused(assemble([p for p in parts if p[0] != tag])) == f"a.kpc: damaged: section '{name}' is missing"
    assert refused(assemble([*parts, (tag, b"")])) == f"a.kpc: damaged: two sections '{name}'"


def checked(header: tuple[int, ...], body: bytes) -> bytes:
    """An image with the fields of the header behind the magic as they are given, and the right checksum."""
    head = HEADER.pack(MAGIC, *header, 0)[:-4]
    return head + crc32(body, crc32(head)).to_bytes(4, "little") + body


def test_headers_that_lie() -> None:
    body = dump(SMALL)[HEADER.size :]
    size = HEADER.size + len(body)
    assert load(checked((VERSION, 0, 6, size), body)) == SMALL
    assert refused(checked((VERSION, 1, 6, size), body)) == "a.kpc: damaged header"
    assert refused(checked((VERSION, 0, 65, size), body)) == "a.kpc: damaged header"
    assert refused(checked((VERSION, 0, 5, size), body)) == "a.kpc: damaged: bytes behind the last section"
    assert "a section is missing" in refused(checked((VERSION, 0, 7, size), body))
    long = bytes.fromhex("ffffffff")
    assert (
        refused(checked((VERSION, 0, 1, 32), b"Name" + long)) == "a.kpc: damaged section 'Name': longer than the file"
    )


def test_too_large_an_image() -> None:
    body = bytes(MAX_IMAGE_BYTES)
    assert "too large" in refused(checked((VERSION, 0, 1, HEADER.size + len(body)), body))
    with pytest.raises(Refusal, match="too large for an image"):
        dump(SMALL._replace(source="x" * MAX_IMAGE_BYTES))


HUGE = b"\xff" * 9 + b"\x01"  # 2**64 - 1
DAMAGED = [
    (b"Pool", b"", "truncated number of constants at byte 0"),
    (b"Pool", b"\x80", "truncated number of constants at byte 0"),
    (b"Pool", b"\x81\x80\x04", "number of constants out of range at byte 0"),
    (b"Pool", HUGE, "number of constants out of range"),
    (b"Pool", b"\xff" * 20, "number of constants out of range"),
    (b"Pool", b"\x01\x05", "kind of constant out of range at byte 1"),
    (b"Pool", b"\x01\x03" + b"\xff" * 9 + b"\x02", "integer out of range at byte 2"),
    (b"Pool", b"\x01\x03", "truncated integer at byte 2"),
    (b"Pool", b"\x01\x04\x05abc", "truncated string at byte 3"),
    (b"Pool", b"\x01\x04" + HUGE, "string out of range"),
    (b"Pool", b"\x02\x00", "truncated kind of constant at byte 2"),
    (b"Pool", b"\x01\x00\x00", "bytes too many at byte 2"),
    (b"Func", b"\x81\x40", "number of functions out of range"),
    (b"Func", b"\x01\x02\xff\xfe", "function name is not UTF-8"),
    (b"Func", b"\x01\x03\xed\xa0\x80", "function name is not UTF-8"),
    (b"Func", b"\x01\x01f\xfb\x01", "number of parameters out of range"),
    (b"Func", b"\x01\x01f\x00\x02", "flag out of range"),
    (b"Func", b"\x01\x01f\x00\x00\xfb\x01", "number of registers out of range"),
    (b"Func", b"\x01\x01f\x00\x00\x00\xfb\x01", "number of upvalues out of range"),
    (b"Func", b"\x01\x01f\x00\x00\x00\x01\x02", "flag out of range"),
    (b"Func", b"\x01\x01f\x00\x00\x00\x01\x00\xfb\x01", "upvalue slot out of range"),
    (b"Func", b"\x01\x01f\x00\x00\x00\x01\x00\x00\x01\xff", "upvalue name is not UTF-8"),
    (b"Func", b"\x01\x01f\x00\x00\x00\x00\x81\x80\x02", "number of instructions out of range"),
    (b"Func", b"\x05" + b"\x01f\x00\x00\x00\x00\x80\x80\x02" * 5, "too many instructions"),
    (b"Func", b"\x00\x00", "bytes too many"),
    (b"Code", b"", "0 bytes for 6 instructions"),
    (b"Code", bytes(7), "7 bytes for 6 instructions"),
    (b"Code", bytes(56), "56 bytes for 6 instructions"),
    (b"Code", bytes(40) + b"\xff" + bytes(7), "no such opcode at byte 40"),
    (b"Code", bytes(40) + b"\x00\x01" + bytes(6), "no such opcode at byte 40"),
    (b"Line", b"\x00\x00\x00\x00\x00", "place out of range"),
    (b"Line", b"\x01\x01\x00\x00\x00", "place out of range"),
    (b"Line", b"\x01" + HUGE + b"\x00\x00\x00", "place out of range"),
    (b"Line", b"\x05\x00\x00\x00\x00", "run of instructions out of range"),
    (b"Line", b"\x04\x00\x00\x00", "truncated end column"),
    (b"Line", b"\x04\x00\x00\x00\x00\x02\x00\x00\x00\x00\x00", "bytes too many"),
]


@pytest.mark.parametrize("tag, payload, message", DAMAGED)
def test_damaged_sections(tag: bytes, payload: bytes, message: str) -> None:
    text = refused(replaced(tag, payload))
    assert text.startswith(f"a.kpc: damaged section '{tag.decode()}': ")
    assert message in text


def peak_bytes(image: bytes) -> int:
    """What loading an image takes at most."""
    tracemalloc.start()
    try:
        load(image)
    except Refusal as refusal:
        assert refusal.status == 1
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


@pytest.mark.parametrize("tag, payload, message", DAMAGED)
def test_a_small_image_makes_no_large_allocation(tag: bytes, payload: bytes, message: str) -> None:
    assert peak_bytes(replaced(tag, payload)) < 100_000


def test_memory_is_in_proportion_to_the_image() -> None:
    nils = replaced(b"Pool", b"\xff\xff\x01" + bytes(32767))
    assert len(load(nils).constants) == 32767
    assert peak_bytes(nils) < 100 * len(nils)


def test_numbers_are_little_endian() -> None:
    assert dump(Program("a", (1,), ()))[:12] == MAGIC + VERSION.to_bytes(2, "little") + b"\0\0"

"""Records as bytes and as tuples."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktap.layout import HEAD_BYTES, Layout, aligned, decoder, fixed, integer, variable
from ktap.transport import shape, striding

NAMES = st.integers(0, 99).map(str)
SLOTS = st.lists(
    st.one_of(
        st.builds(integer, NAMES, st.sampled_from(["Q", "q", "I", "i"])),
        st.builds(fixed, NAMES, st.integers(1, 40)),
        st.builds(variable, NAMES, st.integers(1, 100)),
    ),
    max_size=6,
)


def encode(layout: Layout, values: list[object]) -> bytes:
    """What a capture program writes."""
    items: list[object] = [123456789, 7, 1]
    behind = b""
    for slot, value in zip(layout.slots, values):
        if not slot.varies:
            items.append(value)
        elif isinstance(value, bytes):
            items.append(len(value))
            behind += value
        else:
            items.append(-14)
    return struct.pack("=" + layout.letters, *items) + behind


@given(SLOTS, st.data())
def test_what_is_written_is_read(slots: list[object], data: st.DataObject) -> None:
    layout = aligned(tuple(slots))  # type: ignore[arg-type]
    values: list[object] = []
    for slot in layout.slots:
        if slot.varies:
            values.append(data.draw(st.none() | st.binary(max_size=slot.size_bytes)))
        elif slot.letters.endswith("s"):
            values.append(data.draw(st.binary(min_size=slot.size_bytes, max_size=slot.size_bytes)))
        else:
            values.append(data.draw(st.integers(0, 100)))
    raw = encode(layout, values)
    assert len(raw) <= layout.most_bytes
    assert decoder(layout)(memoryview(b"???" + raw), 3) == (123456789, 7, 1, *values)


@given(SLOTS)
def test_every_integer_is_at_a_multiple_of_its_size(slots: list[object]) -> None:
    layout = aligned(tuple(slots))  # type: ignore[arg-type]
    offset = HEAD_BYTES
    for index, slot in enumerate(layout.slots):
        size = 4 if slot.varies else slot.size_bytes
        assert layout.offset(index) == offset
        if slot.varies or not slot.letters.endswith("s"):
            assert offset % size == 0
        offset += size
    assert layout.fixed_bytes == offset


def test_items() -> None:
    layout = aligned((integer("a", "I"), integer("b", "Q"), fixed("c", 16)))
    assert [slot.name for slot in layout.slots] == ["b", "c", "a"]
    assert [layout.item(name) for name in ("a", "b", "c", "d")] == [5, 3, 4, None]


def test_a_record_that_is_cut_short() -> None:
    with pytest.raises(struct.error):
        decoder(Layout((integer("a", "Q"),)))(memoryview(bytes(20)), 0)


def test_records_that_are_alike_are_read_as_one() -> None:
    one, other = Layout((integer("a", "Q"),)), Layout((integer("b", "Q"),))
    assert shape([one, other], 0).uniform == one
    assert shape([one, Layout((integer("a", "q"),))], 0).uniform is None
    assert shape([Layout((variable("a", 9),))], 0).uniform is None
    raw = b"".join(bytes(8) + encode(one, [n]) + bytes(4) for n in range(3))
    assert [record[3] for record in striding(one, 8, 36).iter_unpack(raw)] == [0, 1, 2]

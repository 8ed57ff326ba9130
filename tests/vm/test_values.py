"""Values: what they print as, what they are as keys, what tables do."""

from __future__ import annotations

import pytest
from small_machine import MadeUpEvent, MadeUpHost

from vm.aggregate import Keeping, Stats
from vm.fault import Fault
from vm.limits import Limits
from vm.memory import Account
from vm.values import (
    ENTRY_BYTES,
    MAX_KEY_PARTS,
    TABLE_BYTES,
    Address,
    Cdata,
    EventValue,
    Iterator,
    Key,
    Stack,
    Table,
    describe,
    inner_key,
    make_key,
    outer_key,
    payload_bytes,
    tostring,
    type_name,
    wrap,
)

HOST = MadeUpHost()


def function(depth: int, *_: object) -> object:
    return None


def table(limits: Limits = Limits()) -> Table:  # noqa: B008
    return Table(Account(limits, lambda: ()))


STATS = Stats(Keeping(False, ()))
STATS.add(3)

EVERY_TYPE = [
    (None, "nil", "nil", b"nil"),
    (True, "boolean", "a boolean", b"true"),
    (False, "boolean", "a boolean", b"false"),
    (-5, "integer", "an integer", b"-5"),
    (b"\xff", "string", "a string", b"\xff"),
    (table(), "table", "a table", b"table"),
    (function, "function", "a function", b"function"),
    (Stack((16, 32)), "stack", "a stack", b"k_10+0x1\nk_1f+0x2\n"),
    (Stack((-1,), "user", 7), "stack", "a stack", b"u7_ffffffffffffffff\n"),
    (Address(16), "address", "an address", b"k_10+0x1"),
    (Address(-1, 9), "address", "an address", b"u9_ffffffffffffffff"),
    (STATS, "stats", "a stats value", b"count 1, sum 3, avg 3, min 3, max 3"),
    (Cdata("int *", -16, lambda key: key), "cdata", "a cdata value", b"int * 0xfffffffffffffff0"),
    (Iterator([]), "iterator", "an iterator", b"iterator"),
    (make_key((1, b"x", True)), "key", "a key", b"1, x, true"),
]


@pytest.mark.parametrize("value, name, described, text", EVERY_TYPE)
def test_names_and_texts(value: object, name: str, described: str, text: bytes) -> None:
    assert (type_name(value), describe(value), tostring(value, HOST)) == (name, described, text)


def test_the_event_of_older_scripts() -> None:
    event = MadeUpEvent()
    event.probename, event.argstr = b"sys_enter_read", b"fd: 3"
    value = EventValue(event)
    assert value.member(b"name") == b"sys_enter_read"
    tostring_function = value.member(b"tostring")
    assert callable(tostring_function) and tostring_function(1) == b"fd: 3\n"
    assert value.member(b"other") is None
    assert (type_name(value), describe(value), tostring(value, HOST)) == ("event", "an event", b"fd: 3")


@pytest.mark.parametrize(
    "number, wrapped",
    [(0, 0), ((1 << 63) - 1, (1 << 63) - 1), (1 << 63, -(1 << 63)), (-(1 << 63) - 1, (1 << 63) - 1), (1 << 64, 0)],
)
def test_wrap(number: int, wrapped: int) -> None:
    assert wrap(number) == wrapped


def test_an_address_is_an_integer_as_a_key() -> None:
    t = table()
    t.put(Address(5), b"five")
    assert t.read(5) == b"five"
    assert Address(1 << 63) == -(1 << 63)


def test_booleans_and_integers_are_different_keys() -> None:
    t = table()
    for key in (1, True, 0, False):
        t.put(key, tostring(key, HOST))
    assert [t.read(key) for key in (1, True, 0, False)] == [b"1", b"true", b"0", b"false"]
    assert t.entries() == [(1, b"1"), (True, b"true"), (0, b"0"), (False, b"false")]
    assert [type(key) for key, _ in t.entries()] == [int, bool, int, bool]
    t.put(True, None)
    assert t.read(True) is None and t.read(1) == b"1"


def test_keys_of_several_parts() -> None:
    assert make_key((1, b"a")) == make_key((1, b"a"))
    assert make_key((1, True)) != make_key((1, 1))
    assert make_key((1, True)).parts() == (1, True)
    assert type(make_key((1, True)).parts()[1]) is bool
    assert make_key((make_key((1, 2)), 3)) == make_key((1, 2, 3))
    assert outer_key(inner_key(False)) is False
    with pytest.raises(Fault, match="nil cannot be part of a key"):
        make_key((1, None))
    longest = make_key(range(MAX_KEY_PARTS))
    with pytest.raises(Fault, match="a key of more than 64 parts"):
        make_key((longest, 1))


def test_nil_removes_and_is_no_key() -> None:
    t = table()
    t.put(b"k", 1)
    t.put(b"k", None)
    t.put(b"not there", None)
    assert len(t) == 0
    for value in (1, None):
        with pytest.raises(Fault, match="nil cannot be a key") as caught:
            t.put(None, value)
        assert caught.value.kind == "key"


def test_a_full_table_drops_new_keys_and_counts_them() -> None:
    account = Account(Limits(table_entries=2), lambda: ())
    t = Table(account)
    for key in range(5):
        t.put(key, key)
    t.put(1, 11)
    assert t.entries() == [(0, 0), (1, 11)]
    assert account.dropped_keys == 3
    t.put(0, None)
    t.put(7, 7)
    assert t.entries() == [(1, 11), (7, 7)] and account.dropped_keys == 3


def test_what_a_table_charges() -> None:
    account = Account(Limits(), lambda: ())
    t = Table(account)
    assert account.charged == TABLE_BYTES
    t.put(1, 2)
    assert account.charged == TABLE_BYTES + ENTRY_BYTES
    t.put(1, 3)
    t.put(1, b"x" * 10)
    t.put(b"key", 1)
    assert account.charged == TABLE_BYTES + 2 * ENTRY_BYTES + 13


def test_payloads() -> None:
    assert payload_bytes(b"abc") == 3
    assert payload_bytes(make_key((b"ab", 1))) == 64 + 48 + 2 + 48
    assert payload_bytes(Stack((1, 2))) == 128 + 80
    assert payload_bytes(7) == payload_bytes(table()) == 0


def test_append_begins_at_the_first_free_integer() -> None:
    t = table()
    t.append((b"a", None, b"c"))
    assert t.entries() == [(1, b"a"), (3, b"c")]
    t.append((b"b", b"x"))
    assert t.entries() == [(1, b"a"), (3, b"x"), (2, b"b")]
    t.append((b"d",))
    assert t.read(4) == b"d"
    named = table()
    named.put(b"name", 1)
    named.put(2, 2)
    named.append((b"one",))
    assert named.read(1) == b"one"


def test_tables_are_keys_by_what_they_are() -> None:
    one, other, t = table(), table(), table()
    t.put(one, 1)
    t.put(other, 2)
    assert (t.read(one), t.read(other)) == (1, 2)
    assert one != other


def test_a_snapshot_does_not_change() -> None:
    t = table()
    t.put(1, 1)
    entries = t.entries()
    t.put(2, 2)
    assert entries == [(1, 1)]


def test_a_key_is_a_tuple_of_its_own_kind() -> None:
    assert type(make_key((1, 2))) is Key

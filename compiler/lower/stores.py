"""Tables and variables in emitted code: keys, lookups, additions, samples, entries.

Sums and aggregations are per processor and updated in place. Where several programs update one map, an
interrupt can run one in the middle of another, so additions are atomic there and extremes are exchanged
by compare-and-swap; a program alone cannot interrupt itself (the kernel counts what it skips).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Callable, List, Optional

from compiler.lower.flat import Constant, NotLowered, Operation
from compiler.lower.layouts import (
    BUCKETS,
    COUNT,
    LARGEST,
    SMALLEST,
    STATE_BYTES,
    SUM_OF,
    key_bytes,
    key_parts,
    part_bytes,
    rounded,
    value_bytes,
)
from compiler.lower.partition import AGGREGATION, KEYED, Addition, TableHome, VariableHome
from compiler.lower.types import Type
from compiler.lower.values import Value, of_constant
from vm.aggregate import Shape
from vm.histogram import steps
from vm.values import MAX_INTEGER, MIN_INTEGER

if TYPE_CHECKING:
    from compiler.lower.emit import Emitter

BPF_ANY, BPF_NOEXIST = 0, 1
MAP_IS_FULL = -7
"""-E2BIG. What else keeps an entry from being made is that its memory or the lock of its bucket is not to be had now."""
EXCHANGES = 8
"""How often an extreme is tried: more interrupts than can nest on one processor."""


class Stores:
    """What a handler does with tables and variables."""

    def __init__(self, emitter: Emitter) -> None:
        self.e = emitter
        self.w = emitter.w
        self.texts = emitter.texts
        self.shared = emitter.shared

    # -- variables ----------------------------------------------------------------------------

    def add_to_variable(self, home: VariableHome, update: Addition, amount: Value) -> None:
        """`x += amount` or `s <<< amount`."""
        name, index = self.shared.variable_maps[home.variable]
        key = self.w.local(4, "key")
        self.w.store(4, index, key)
        self._with_found(name, key, lambda found: self._add_to(name, found, home.home, update.change.op, amount), None)

    def _add_to(self, name: str, found: str, home: str, op: str, amount: Value) -> None:
        if home == AGGREGATION:
            self._sample(name, found, amount.number)
        else:
            self._add(name, found, self._signed(op, amount.number))

    def _signed(self, op: str, number: str) -> str:
        return self.w.value(f"sub i64 0, {number}") if op in ("SUB", "SUBINDEX") else number

    # -- tables -------------------------------------------------------------------------------

    def access(self, operation: Operation, values: List[Value], result: Type) -> Optional[Value]:
        """A GETINDEX, GETENTRY, SETINDEX, ADDINDEX, SUBINDEX or SAMPLE."""
        home = self.home(operation)
        key = values[1]
        op = operation.op
        if op in ("GETINDEX", "GETENTRY"):
            return self._get(home, key, result, operation)
        if op == "SAMPLE":
            self.e.check_sample(values[2], operation)
        self.check_key(key, operation)
        pointer = self.key(home, key)
        if op == "SETINDEX":
            self._set(home, pointer, values[2])
        elif op == "SAMPLE":
            self._sample_entry(home, pointer, values[2].number)
        elif home.home == KEYED:
            self._add_keyed(home, pointer, values[2], self._signed(op, values[2].number))
        else:
            self._add_entry(home, pointer, self._signed(op, values[2].number))
        return None

    def home(self, operation: Operation) -> TableHome:
        """Where the table of an operation lives."""
        table = operation.arguments[0]
        assert isinstance(table, Constant)
        return self.shared.plan.tables[id(table.value)]

    def name(self, home: TableHome) -> str:
        """The map of a table."""
        return self.shared.table_maps[id(home.table)]

    def check_key(self, key: Value, operation: Operation) -> None:
        """A fault for nil."""
        if key.type.can_be("nil"):
            self.e.fault_if(key.isnil, "key", operation, "nil cannot be a key")

    def key(self, home: TableHome, key: Value) -> str:
        """A pointer to the bytes of a key that is not nil."""
        wanted = key_parts(home.facts.key)
        given = key.parts if key.parts else (key,)
        if len(wanted) == 1 and wanted[0].is_bytes:
            only, size = given[0], part_bytes(wanted[0])
            if only.is_padded and only.pointer and rounded(only.type.size_bytes) == size:
                return only.pointer
        target = self.texts.room(key_bytes(home.facts.key))
        offset = 0
        for part, value in zip(wanted, given):
            size = part_bytes(part)
            if part.is_only("string"):
                self.texts.place(value, self.w.at(target, offset), size)
            elif part.is_bytes:
                self.texts.place(value._replace(zeros=True), self.w.at(target, offset), size)
            else:
                self.w.store(8, value.number, target, offset)
            offset += size
        return target

    def map(self, name: str) -> str:
        """The map as an operand: itself, or what an array of maps holds now."""
        if name not in self.shared.swapped:
            return self.w.reference(name)
        return self.w.lookup(name, self.w.index(0), self.e.end)

    def _with_found(
        self, name: str, key: str, hit: Callable[[str], None], miss: Optional[Callable[[str], None]]
    ) -> None:
        """Look up; `hit` gets the value's address, `miss` the map."""
        w = self.w
        inside = self.map(name)
        found = w.call("map_lookup", inside, key)
        yes, no, done = w.fresh("hit"), w.fresh("miss"), w.fresh("done")
        w.branch(w.value(f"icmp ne ptr {found}, null"), yes, no)
        w.label(yes)
        hit(found)
        w.goto(done)
        w.label(no)
        if miss is not None:
            miss(inside)
        w.goto(done)
        w.label(done)

    def _insert(
        self, home: TableHome, inside: str, key: str, value: str, again: Optional[Callable[[str], None]]
    ) -> None:
        """Put a new entry; where there is one by now `again` gets it; where the map is full the drop is counted."""
        w = self.w
        flag = BPF_ANY if again is None else BPF_NOEXIST
        failed = w.call("map_update", inside, key, value, flag)
        full, done = w.fresh("full"), w.fresh("done")
        if again is None:
            w.branch(w.value(f"icmp eq i64 {failed}, 0"), done, full)
        else:
            retry, hit = w.fresh("retry"), w.fresh("hit")
            w.branch(w.value(f"icmp eq i64 {failed}, 0"), done, retry)
            w.label(retry)
            found = w.call("map_lookup", inside, key)
            w.branch(w.value(f"icmp ne ptr {found}, null"), hit, full)
            w.label(hit)
            again(found)
            w.goto(done)
        w.label(full)
        self._count_drop(home, failed)
        w.goto(done)
        w.label(done)

    def _count_drop(self, home: TableHome, failed: str) -> None:
        """Count a new entry that could not be made, by whether the map is full."""
        w = self.w
        place = w.index(list(self.shared.plan.tables).index(id(home.table)))
        counter = w.call("map_lookup", w.reference("drops"), place)
        some, none = w.fresh("some"), w.fresh("none")
        w.branch(w.value(f"icmp ne ptr {counter}, null"), some, none)
        w.label(some)
        other = w.value(f"select i1 {w.value(f'icmp eq i64 {failed}, {MAP_IS_FULL}')}, i64 0, i64 8")
        w.value(f"atomicrmw add ptr {w.at(counter, other)}, i64 1 seq_cst")
        w.goto(none)
        w.label(none)

    # -- additions and samples ----------------------------------------------------------------

    def _add_entry(self, home: TableHome, key: str, amount: str) -> None:
        name = self.name(home)

        def add(found: str) -> None:
            self._add(name, found, amount)
            if name in self.shared.swapped:  # how often, for what finds no room in the script's table
                self._add(name, self.w.at(found, 8), "1")

        def insert(inside: str) -> None:
            value = self.w.local(16, "value")
            self.w.store(8, amount, value)
            self.w.store(8, 1, value, 8)
            self._insert(home, inside, key, value, add)

        self._with_found(name, key, add, insert)

    def _add(self, name: str, place: str, amount: str) -> None:
        if name in self.shared.contended:
            self.w.value(f"atomicrmw add ptr {place}, i64 {amount} monotonic")
        else:
            self.w.store(8, self.w.value(f"add i64 {self.w.load(8, place)}, {amount}"), place)

    def _sample_entry(self, home: TableHome, key: str, number: str) -> None:
        name = self.name(home)

        def sample(found: str) -> None:
            self._sample(name, found, number)

        def insert(inside: str) -> None:
            zeros = self.w.lookup("zeros", self.w.index(0), self.e.end)
            failed = self.w.call("map_update", inside, key, zeros, BPF_NOEXIST)
            found = self.w.call("map_lookup", inside, key)
            made, full, done = self.w.fresh("made"), self.w.fresh("full"), self.w.fresh("done")
            self.w.branch(self.w.value(f"icmp ne ptr {found}, null"), made, full)
            self.w.label(made)
            sample(found)
            self.w.goto(done)
            self.w.label(full)
            self._count_drop(home, failed)
            self.w.goto(done)
            self.w.label(done)

        self._with_found(name, key, sample, insert)

    def _sample(self, name: str, place: str, number: str) -> None:
        """One sample. The extremes are kept as distances from the other end of all integers: what is new is 0."""
        w = self.w
        self._extreme(name, w.at(place, SMALLEST), w.value(f"sub i64 {MAX_INTEGER}, {number}"))
        self._extreme(name, w.at(place, LARGEST), w.value(f"sub i64 {number}, {MIN_INTEGER}"))
        self._add(name, w.at(place, SUM_OF), number)
        if self.shared.stats.powers:
            index = self._power(number)
            self._bucket(name, place, BUCKETS, index, 64)
        for position, shape in enumerate(self.shared.stats.shapes):
            index = self._step(shape, number)
            offset = self.shared.stats.shape_offset(position)
            self._bucket(name, place, offset, index, 1 + steps(*shape))
        self._add(name, w.at(place, COUNT), "1")

    def _extreme(self, name: str, place: str, distance: str) -> None:
        """Keep the larger of two unsigned distances."""
        w = self.w
        done = w.fresh("done")
        for _ in range(EXCHANGES if name in self.shared.contended else 1):
            old = w.load(8, place)
            better, following = w.fresh("better"), w.fresh("l")
            w.branch(w.value(f"icmp ugt i64 {distance}, {old}"), better, done)
            w.label(better)
            if name not in self.shared.contended:
                w.store(8, distance, place)
                w.goto(done)
                break
            pair = w.value(f"cmpxchg ptr {place}, i64 {old}, i64 {distance} seq_cst seq_cst")
            w.branch(w.value(f"extractvalue {{ i64, i1 }} {pair}, 1"), done, following)
            w.label(following)
        else:
            w.goto(done)
        w.label(done)

    def _bucket(self, name: str, place: str, offset: int, index: str, last: int) -> None:
        w = self.w
        inside, outside = w.fresh("in"), w.fresh("out")
        w.branch(w.value(f"icmp ule i64 {index}, {last}"), inside, outside)
        w.label(inside)
        where = w.at(w.at(place, offset), w.value(f"shl i64 {index}, 3"))
        self._add(name, where, "1")
        w.goto(outside)
        w.label(outside)

    def _power(self, number: str) -> str:
        """1 + the bit length of a sample, 0 below zero; without branches."""
        w = self.w
        rest, length = number, "0"
        for bit in (5, 4, 3, 2, 1, 0):
            upper = w.value(f"lshr i64 {rest}, {1 << bit}")
            negated = w.value(f"sub i64 0, {upper}")
            some = w.value(f"lshr i64 {w.value(f'or i64 {upper}, {negated}')}, 63")
            moved = w.value(f"shl i64 {some}, {bit}")
            length = w.value(f"add i64 {length}, {moved}")
            rest = w.value(f"lshr i64 {rest}, {moved}")
        length = w.value(f"add i64 {length}, {rest}")
        positive = w.value(f"xor i64 {w.value(f'ashr i64 {number}, 63')}, -1")
        return w.value(f"and i64 {w.value(f'add i64 {length}, 1')}, {positive}")

    def _step(self, shape: Shape, number: str) -> str:
        w = self.w
        way = w.value(f"sub i64 {number}, {shape.low}")
        inner = w.value(f"add i64 {w.value(f'udiv i64 {way}, {shape.step}')}, 1")
        above = w.value(f"icmp sge i64 {number}, {shape.high}")
        inner = w.value(f"select i1 {above}, i64 {1 + steps(*shape)}, i64 {inner}")
        return w.value(f"select i1 {w.value(f'icmp slt i64 {number}, {shape.low}')}, i64 0, i64 {inner}")

    # -- entries ------------------------------------------------------------------------------

    def _get(self, home: TableHome, key: Value, result: Type, operation: Operation) -> Value:
        """The entry under a key as a value of its own, nil (or 0) where there is none."""
        w = self.w
        held = home.facts.value.without("nil")
        number, isnil, length = w.local(8, "number"), w.local(8, "isnil"), w.local(8, "length")
        default = 0 if operation.op == "GETENTRY" else 1
        w.store(8, 0, number)
        w.store(8, default, isnil)
        w.store(8, 0, length)
        pointer = self.texts.room(held.size_bytes) if value_bytes(held) > 8 else ""
        done = w.fresh("done")
        if key.type.can_be("nil"):
            w.only_if(w.value(f"xor i1 {key.isnil}, true"), done)

        def copy(entry: str) -> None:
            found = self._value_of(home, entry, done)
            w.store(8, 0, isnil)
            if pointer:
                size = w.load(8, found)
                w.store(8, size, length)
                self.texts.move(pointer, w.at(found, 8), rounded(held.size_bytes))
            else:
                w.store(8, w.load(8, found), number)

        self._with_found(self.name(home), self.key(home, key), copy, None)
        w.goto(done)
        w.label(done)
        missing = w.value(f"icmp ne i64 {w.load(8, isnil)}, 0")
        kind = result._replace(size_bytes=held.size_bytes) if pointer else result
        return Value(kind, w.load(8, number), missing, pointer, w.load(8, length) if pointer else None)

    def _set(self, home: TableHome, key: str, value: Value) -> None:
        done = self._removed_by_nil(home, key, value)
        if not value.type.is_only("nil"):
            self._put(home, key, value)
        self.w.goto(done)
        self.w.label(done)

    def _removed_by_nil(self, home: TableHome, key: str, value: Value) -> str:
        """Remove the entry where the value is nil; goes on where it is not. The label behind both."""
        w = self.w
        done = w.fresh("done")
        if value.type.can_be("nil"):
            remove, keep = w.fresh("remove"), w.fresh("keep")
            w.branch(value.isnil, remove, keep)
            w.label(remove)
            self._remove(home, key)
            w.goto(done)
            w.label(keep)
        return done

    def _add_keyed(self, home: TableHome, key: str, amount: Value, signed: str) -> None:
        """`t[k] += amount` where no other program uses the entry; nil makes it nil."""
        w = self.w
        done = self._removed_by_nil(home, key, amount)
        state_bytes = self._state_bytes(home)

        def add(found: str) -> None:
            removed, over = w.fresh("removed"), w.fresh("over")
            place = self._value_of(home, found, removed)
            w.store(8, w.value(f"add i64 {w.load(8, place)}, {signed}"), place)
            w.goto(over)
            w.label(removed)
            if state_bytes:
                self._write(home, found, signed)
            w.goto(over)
            w.label(over)

        def insert(inside: str) -> None:
            room = w.local(16, "value")
            if state_bytes:
                w.store(8, 1, room)
            w.store(8, signed, room, state_bytes)
            self._insert(home, inside, key, room, None)

        self._with_found(self.name(home), key, add, insert)
        w.goto(done)
        w.label(done)

    def _put(self, home: TableHome, key: str, value: Value) -> None:
        w = self.w
        held = home.facts.value.without("nil")
        if value_bytes(held) > 8:
            room = self.texts.room(value_bytes(held))
            if value.type.can_be("stack") or value.type.can_be("user stack"):
                raise NotLowered(None, "keeps a stack in a table", "use it as a key")
            w.store(8, self.texts.copy(value, w.at(room, 8), held.size_bytes), room)
            self._insert(home, self.map(self.name(home)), key, room, None)
            return
        room = w.local(16, "value")
        if self._keeps(home):
            w.store(8, 1, room)
        w.store(8, value.number, room, self._state_bytes(home))
        self._with_found(
            self.name(home),
            key,
            lambda found: self._write(home, found, value.number),
            lambda inside: self._insert(home, inside, key, room, None),
        )

    # -- entries that are kept when they are removed ------------------------------------------

    def _keeps(self, home: TableHome) -> bool:
        return home.reused and self.shared.limits.kept_entries > 0

    def _state_bytes(self, home: TableHome) -> int:
        return STATE_BYTES if self._keeps(home) else 0

    def _value_of(self, home: TableHome, entry: str, otherwise: str) -> str:
        """The value of an entry; goes to a label where it has been removed."""
        if not self._keeps(home):
            return entry
        self.w.only_if(self.w.value(f"icmp ne i64 {self.w.load(8, entry)}, 0"), otherwise)
        return self.w.at(entry, STATE_BYTES)

    def _write(self, home: TableHome, entry: str, number: str) -> None:
        """Write the value of an entry that is there, or was removed."""
        w = self.w
        w.store(8, number, entry, self._state_bytes(home))
        if self._keeps(home):
            done = w.fresh("done")
            w.only_if(w.value(f"icmp eq i64 {w.load(8, entry)}, 0"), done)
            w.store(8, 1, entry)
            count = self._kept(home, done)
            w.store(8, w.value(f"sub i64 {w.load(8, count)}, 1"), count)
            w.goto(done)
            w.label(done)

    def _remove(self, home: TableHome, key: str) -> None:
        """Remove an entry, or mark it as removed where this processor has not left too many behind already."""
        if not self._keeps(home):
            self.w.call("map_delete", self.map(self.name(home)), key)
            return
        w = self.w
        most = self.shared.limits.kept_entries

        def mark(entry: str) -> None:
            done, delete, keep = w.fresh("done"), w.fresh("delete"), w.fresh("keep")
            self._value_of(home, entry, done)
            count = self._kept(home, done)
            before = w.load(8, count)
            w.branch(w.value(f"icmp slt i64 {before}, {most}"), keep, delete)
            w.label(keep)
            w.store(8, 0, entry)
            w.store(8, w.value(f"add i64 {before}, 1"), count)
            w.goto(done)
            w.label(delete)
            w.call("map_delete", self.map(self.name(home)), key)
            w.goto(done)
            w.label(done)

        self._with_found(self.name(home), key, mark, None)

    def _kept(self, home: TableHome, otherwise: str) -> str:
        """How many removed entries this processor has left behind, less those it has found again: a pointer."""
        return self.w.lookup("kept", self.w.index(list(self.shared.plan.tables).index(id(home.table))), otherwise)

    def delete(self, operation: Operation, values: List[Value]) -> Value:
        """delete(t, k)."""
        home = self.home(operation)
        if home.home != KEYED:
            raise NotLowered(operation.span, f"deletes from `{home.name}`")
        key = values[1]
        done = self.w.fresh("done")
        if key.type.can_be("nil"):
            self.w.only_if(self.w.value(f"xor i1 {key.isnil}, true"), done)
        self._remove(home, self.key(home, key))
        self.w.goto(done)
        self.w.label(done)
        return of_constant(None)

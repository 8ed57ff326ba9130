"""Tables and variables that live in the kernel: their maps, and how what is in them comes into the VM.

Sums and aggregations are *drained*: what programs have added since the last time is taken out of the
maps and added, by the VM's own operations, to the tables and variables that scripts see. A map that is
drained while events fire is exchanged for an empty one first; the kernel lets no program still use the
old one when the exchange returns (kernel/bpf/syscall.c, maybe_wait_bpf_programs), so every addition is
counted once. Entries of running threads are copied out, and stay.
"""

from __future__ import annotations

import os
import struct
from typing import Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from compiler.lower.flat import Variable
from compiler.lower.layouts import (
    ARRAY,
    BUCKETS,
    COUNT,
    HASH,
    LARGEST,
    PERCPU_ARRAY,
    PERCPU_HASH,
    POWERS,
    SMALLEST,
    STATE_BYTES,
    SUM_OF,
    MapSpec,
    StatsLayout,
    kept_entries,
    key_bytes,
    key_parts,
    part_bytes,
    rounded,
    stats_layout,
    value_bytes,
)
from compiler.lower.partition import AGGREGATION, CONSTANT, KEYED, SUM, Plan, TableHome
from compiler.lower.types import STACK_HEAD_BYTES, Type
from ktap import kernel
from ktap.captured import Plumbing, stack_of, with_caller
from ktap.objects import Objects
from vm.aggregate import Keeping, Stats
from vm.histogram import steps
from vm.memory import Account
from vm.named_tuple import NamedTuple
from vm.values import MAX_INTEGER, MIN_INTEGER, Address, Key, Stack, outer_key, wrap

DROPS, KEPT, ZEROS, SUMS, SAMPLES, STOPPED = "drops", "kept", "zeros", "sums", "samples", "stopped"
"""References of programs: entries dropped, and removed ones kept, by table; a value of zeros; variables that are added
to and sampled; whether a handler has ended the run."""
PRESENT = struct.pack("=q", 1)
"""The state of an entry that has not been removed."""
STACK_HEAD = struct.Struct("=IHHq").unpack_from
"""Before the frames of a stack: its process, or whether plumbing may be on it; how many frames are wanted, how many
before them are not; the caller of a function that has just begun, or 0."""
KINDS = {
    HASH: kernel.HASH,
    PERCPU_HASH: kernel.PERCPU_HASH,
    ARRAY: kernel.ARRAY,
    PERCPU_ARRAY: kernel.PERCPU_ARRAY,
}
ON_DEMAND_SINCE = (6, 1)
"""The release of Linux from which on programs allocate entries of hash maps from memory that is kept ready for them
(kernel/bpf/memalloc.c)."""
MANY_EVENTS = 500
"""So many events may insert more at a time, although each of them inserts little."""
MOST_AT_ONCE = 4
"""So many new entries in one run of a handler are there in any case."""


class Held(NamedTuple):
    """A map, or two that are exchanged: the one programs use now is `inner[0]`, reached through `outer`."""

    outer: Optional[int]
    inner: List[int]
    key_bytes: int
    value_bytes: int


WRITES = ("SETINDEX", "ADDINDEX", "SUBINDEX", "SAMPLE")

NameOf = Callable[[int], bytes]
"""The name of an event by its number."""


class Variables(NamedTuple):
    """How the VM's variables are read and written."""

    read: Callable[[Variable], object]
    write: Callable[[Variable, object], None]


class KernelTables:
    """The maps of a plan: what they are (`specs`), and they themselves, made when `maps` is first asked for.

    Everything ends with their file descriptors.
    """

    def __init__(
        self,
        plan: Plan,
        keeping: Keeping,
        account: Account,
        drained: bool,
        variables: Variables,
        name_of: NameOf,
        plumbing: Plumbing,
        objects: Objects,
        events: int,
    ) -> None:
        """`account` has the limit of a table, and counts what did not fit; `drained` says that sums are taken out
        while events fire; `objects` makes the maps.
        """
        self._objects = objects
        self.plan = plan
        self.events = events
        self.keeping = keeping
        self.account = account
        self.stats = stats = stats_layout(keeping)
        self.variables = variables
        self.name_of = name_of
        self.plumbing = plumbing
        self.wait_for_runs: Callable[[], None] = lambda: None
        """Waits for the runs of programs that the kernel does not wait for when a map is exchanged: those that sleep."""
        self.cpus = kernel.possible_cpus()
        self.names: Dict[int, str] = {}
        self.specs: Dict[str, MapSpec] = {}
        """By the names that programs know them by."""
        self.held: Dict[str, Held] = {}
        self.variable_places: Dict[Variable, Tuple[str, int]] = {}
        self.reported_drops: Dict[int, int] = {}
        self.kept_entries = kept_entries(account.table_entries, self.cpus)
        """How many removed entries each processor may leave in a table."""
        self._make_tables(account.table_entries, drained)
        self._make_variables(drained)
        self._spec(ZEROS, ARRAY, 4, max(4096, stats.size_bytes), 1)
        self._spec(STOPPED, ARRAY, 4, 8, 1)
        self._spec(DROPS, PERCPU_ARRAY, 4, 16, max(1, len(plan.tables)))
        self._spec(KEPT, PERCPU_ARRAY, 4, 8, max(1, len(plan.tables)))

    # -- making -------------------------------------------------------------------------------

    def _make_tables(self, entries: int, drained: bool) -> None:
        on_demand = kernel.release() >= ON_DEMAND_SINCE
        for number, (identity, home) in enumerate(self.plan.tables.items()):
            name = self.names[identity] = f"table{number}"
            if home.home == KEYED:
                size = value_bytes(home.facts.value) + self._state_bytes(home)
                self._spec(name, HASH, key_bytes(home.facts.key), size, entries)
            elif home.home == CONSTANT:
                size = value_bytes(home.facts.value)
                self._spec(name, HASH, key_bytes(home.facts.key), size, max(1, len(home.table)))
            else:
                size = self.stats.size_bytes if home.home == AGGREGATION else 16 if drained else 8
                self._spec(name, PERCPU_HASH, key_bytes(home.facts.key), size, entries, drained)
            if home.facts.key.is_only("probename"):
                spec = self.specs[name]
                self.specs[name] = spec._replace(entries=max(1, min(spec.entries, self.events)))
            if on_demand and self.events < MANY_EVENTS and not home.bursts and not self._comes_in_bursts(home):
                self.specs[name] = self.specs[name]._replace(preallocated=False)

    def _comes_in_bursts(self, home: TableHome) -> bool:
        """Whether one run of a handler may insert more entries than there is memory for at once."""
        for handler, accesses in home.facts.accesses.items():
            blocks = self.plan.kernel[handler].blocks
            loops = any(operation.op == "ROUND" for block in blocks for operation in block.operations)
            if loops or sum(access.op in WRITES for access in accesses) > MOST_AT_ONCE:
                return True
        return False

    def _reserve(self, home: TableHome, name: str) -> None:
        """Entries that the script's table has must not be what is dropped for want of room."""
        held = self.held[name]
        for key, _ in home.table.entries():
            self._objects.update(
                held.inner[0], pack_key(home.facts.key, key), bytes(rounded(held.value_bytes) * self.cpus)
            )

    def _fill(self, home: TableHome, name: str) -> None:
        """Put what the table holds after the main chunk into its map."""
        held = self.held[name]
        state = PRESENT[: self._state_bytes(home)]
        for key, value in home.table.entries():
            packed = state + pack_value(home.facts.value, value, held.value_bytes - len(state))
            self._objects.update(held.inner[0], pack_key(home.facts.key, key), packed)

    def _state_bytes(self, home: TableHome) -> int:
        """What lies before the values of a table."""
        return STATE_BYTES if home.reused and self.kept_entries else 0

    def _make_variables(self, drained: bool) -> None:
        for home, reference in ((SUM, SUMS), (AGGREGATION, SAMPLES)):
            found = [v for v, where in self.plan.variables.items() if where.home == home]
            self.variable_places.update((variable, (reference, place)) for place, variable in enumerate(found))
            size = 8 if home == SUM else self.stats.size_bytes
            if found:
                self._spec(reference, PERCPU_ARRAY, 4, size, len(found), drained)

    def _spec(self, name: str, kind: str, key_size: int, value_size: int, entries: int, drained: bool = False) -> None:
        self.specs[name] = MapSpec(name, kind, key_size, value_size, entries, drained)

    def _create(self, spec: MapSpec) -> None:
        flags = 0 if spec.preallocated else kernel.NO_PREALLOCATION
        kind, name = KINDS[spec.kind], f"ktap_{spec.name}"
        inner = [
            self._objects.map(kind, name, spec.key_bytes, spec.value_bytes, spec.entries, flags)
            for _ in range(1 + spec.swapped)
        ]
        outer = self._objects.map_of_maps(f"{name}s", inner[0]) if spec.swapped else None
        self.held[spec.name] = Held(outer, inner, spec.key_bytes, spec.value_bytes)

    @property
    def maps(self) -> Mapping[str, int]:
        """The file descriptor for every reference of a program. Raises OSError where one cannot be made."""
        if not self.held:
            for spec in self.specs.values():
                self._create(spec)
            for identity, home in self.plan.tables.items():
                put = self._fill if home.home in (KEYED, CONSTANT) else self._reserve
                put(home, self.names[identity])
        return {name: held.inner[0] if held.outer is None else held.outer for name, held in self.held.items()}

    @property
    def exchanged(self) -> frozenset[str]:
        """Names of the maps that are reached through an array of maps."""
        return frozenset(spec.name for spec in self.specs.values() if spec.swapped)

    def close(self) -> None:
        """Give the maps back. Safe to call twice."""
        for held in self.held.values():
            for fd in (*held.inner, *(() if held.outer is None else (held.outer,))):
                os.close(fd)
        self.held = {}

    # -- draining -----------------------------------------------------------------------------

    def drain(self) -> None:
        """Add what programs have added since to the VM's tables and variables; copy the entries of threads."""
        if not self.held:
            return
        for identity, home in self.plan.tables.items():
            name = self.names[identity]
            if home.home == KEYED:
                self._copy(home, name)
            elif home.home == SUM:
                for key, value in self._taken(name):
                    self._add(home, self._key(home, key), words(value), name in self.exchanged)
            elif home.home == AGGREGATION:
                for key, value in self._taken(name):
                    self._merge(home, self._key(home, key), value)
        self._drain_variables()
        for number, home in enumerate(self.plan.tables.values()):
            count = self.drops(number)[0]
            self.account.drop(home.table, count - self.reported_drops.get(number, 0))
            self.reported_drops[number] = count

    def _taken(self, name: str) -> Iterator[Tuple[bytes, bytes]]:
        """The entries of a per-CPU map, which is empty afterwards, with the values of all processors."""
        held = self.held[name]
        old = held.inner[0]
        if held.outer is not None:
            self._exchange(held)
        return kernel.take_all(old, held.key_bytes, rounded(held.value_bytes) * self.cpus, True)

    def _exchange(self, held: Held) -> None:
        """Have programs use the other map; no run uses the old one any more."""
        assert held.outer is not None
        held.inner.reverse()
        kernel.update(held.outer, bytes(4), struct.pack("=I", held.inner[0]))
        self.wait_for_runs()

    def _key(self, home: TableHome, key: bytes) -> object:
        return unpack_key(home.facts.key, key, self.name_of, self.plumbing)

    def _add(self, home: TableHome, key: object, values: Sequence[int], counted: bool) -> None:
        """Add what all processors have added; `counted`: behind each sum is the number of additions."""
        amount, count = (sum(values[::2]), sum(values[1::2])) if counted else (sum(values), 1)
        if count:
            self._count_drops(home, key, count)
            before = home.table.read(key)
            home.table.put(key, wrap((before if isinstance(before, int) else 0) + amount))

    def _count_drops(self, home: TableHome, key: object, events: int) -> None:
        """A new key that finds no room was dropped as often as there were events; `put` counts one of them."""
        if len(home.table) >= self.account.table_entries and home.table.read(key) is None:
            self.account.drop(home.table, events - 1)

    def _merge(self, home: TableHome, key: object, value: bytes) -> None:
        added = Stats(self.keeping)
        self._add_samples(added, value)
        if not added.count:
            return
        stats = home.table.read(key)
        if isinstance(stats, Stats):
            self._add_samples(stats, value)
            return
        self._count_drops(home, key, added.count)
        home.table.put(key, added)

    def _add_samples(self, stats: Stats, value: bytes) -> None:
        size = rounded(self.stats.size_bytes)
        for start in range(0, len(value), size):
            merge(stats, self.stats, value[start : start + size])

    def _copy(self, home: TableHome, name: str) -> None:
        held = self.held[name]
        home.table.clear()
        start = self._state_bytes(home)
        for key, value in kernel.take_all(held.inner[0], held.key_bytes, held.value_bytes, False):
            if value[:start] == PRESENT[:start]:
                found = unpack_value(home.facts.value, value[start:], self.name_of)
                home.table.put(self._key(home, key), found)

    def _drain_variables(self) -> None:
        fresh: Dict[str, int] = {}
        for variable, (name, place) in self.variable_places.items():
            held = self.held[name]
            if name not in fresh:
                fresh[name] = held.inner[0]
                if held.outer is not None:
                    self._exchange(held)
            size = rounded(held.value_bytes) * self.cpus
            key = struct.pack("=I", place)
            value = kernel.lookup(fresh[name], key, size)
            kernel.update(fresh[name], key, bytes(size))
            if value is not None:
                self._add_variable(variable, name, value)

    def _add_variable(self, variable: Variable, name: str, value: bytes) -> None:
        before = self.variables.read(variable)
        if name == SUMS:
            amount = sum(words(value))
            if amount:
                self.variables.write(variable, wrap((before if isinstance(before, int) else 0) + amount))
            return
        stats = before if isinstance(before, Stats) else Stats(self.keeping)
        self._add_samples(stats, value)
        if stats.count:
            self.variables.write(variable, stats)

    def drops(self, table: int) -> Tuple[int, int]:
        """How many new keys the table of a number did not take: at its limit, and for want of memory at the moment."""
        held = self.held.get(DROPS)
        value = kernel.lookup(held.inner[0], struct.pack("=I", table), 16 * self.cpus) if held is not None else None
        numbers = words(value) if value is not None else ()
        return sum(numbers[::2]), sum(numbers[1::2])

    def unmade(self) -> List[Tuple[str, int]]:
        """Tables in which the kernel could not make entries, and how many events found none."""
        found = [(home.name, self.drops(number)[1]) for number, home in enumerate(self.plan.tables.values())]
        return [(name, events) for name, events in found if events]


# -- bytes ------------------------------------------------------------------------------------


def words(data: bytes) -> Tuple[int, ...]:
    """Signed 64-bit integers."""
    return struct.unpack(f"={len(data) // 8}q", data)


def pack_key(kind: Type, key: object) -> bytes:
    """A key as programs make it."""
    parts = key.parts() if isinstance(key, Key) else (key,)
    return b"".join(pack_part(part, value) for part, value in zip(key_parts(kind), parts))


def pack_part(kind: Type, value: object) -> bytes:
    """One part of a key."""
    size = part_bytes(kind)
    if isinstance(value, bytes):
        return value.ljust(size, b"\0")
    if isinstance(value, Stack):
        head = struct.pack("=qq", value.pid | len(value.frames) << 32, 0)
        return (head + struct.pack(f"={len(value.frames)}q", *value.frames)).ljust(size, b"\0")
    assert isinstance(value, int)
    return struct.pack("=q", value)


def unpack_key(kind: Type, data: bytes, name_of: NameOf, plumbing: Plumbing) -> object:
    """A key as a script sees it."""
    parts: List[object] = []
    for part in key_parts(kind):
        size = part_bytes(part)
        parts.append(unpack_bytes(part, data[:size], plumbing) if part.is_bytes else number(part, data, name_of))
        data = data[size:]
    return make_key(parts) if kind.can_be("key") else parts[0]


def make_key(parts: Sequence[object]) -> Key:
    """A multi-key of parts as a script sees them."""
    from vm.values import make_key as make

    return make(parts)


def number(kind: Type, data: bytes, name_of: NameOf) -> object:
    """An integer, a boolean, an address or an event's name in 8 bytes."""
    (value,) = struct.unpack_from("=q", data)
    if kind.can_be("probename"):
        return name_of(value)
    if kind.can_be("boolean"):
        return bool(value)
    return Address(value) if kind.can_be("address") else value


def unpack_bytes(kind: Type, data: bytes, plumbing: Plumbing) -> object:
    """A string or a stack, padded with zeros."""
    if kind.can_be("string"):
        return data.split(b"\0", 1)[0]
    owner, depth, skip, caller = STACK_HEAD(data)
    frames = words(data[STACK_HEAD_BYTES:])
    if kind.can_be("user stack"):
        return stack_of(with_caller(frames, caller)[skip : skip + depth], "user", owner)
    skip += plumbing.count(frames) if owner else 0
    return stack_of(plumbing.with_caller(frames, caller)[skip : skip + depth], "kernel", 0)


def pack_value(kind: Type, value: object, size_bytes: int) -> bytes:
    """A value as programs keep it."""
    if isinstance(value, bytes):
        return (struct.pack("=q", len(value)) + value).ljust(size_bytes, b"\0")
    value = outer_key(value)
    assert isinstance(value, int)
    return struct.pack("=q", value).ljust(size_bytes, b"\0")


def unpack_value(kind: Type, data: bytes, name_of: NameOf) -> object:
    """A value as a script sees it."""
    plain = kind.without("nil")
    if plain.is_bytes and plain.size_bytes:
        (length,) = struct.unpack_from("=q", data)
        return data[8 : 8 + length]
    return number(plain, data, name_of)


def merge(stats: Stats, layout: StatsLayout, data: bytes) -> None:
    """Add the samples of one processor to an aggregation."""
    (count,) = struct.unpack_from("=q", data, COUNT)
    if not count:
        return
    total, smallest, largest = (struct.unpack_from("=q", data, offset)[0] for offset in (SUM_OF, SMALLEST, LARGEST))
    stats.count += count
    stats.total += total
    stats.smallest = min(stats.smallest, MAX_INTEGER - (smallest % (1 << 64)))
    stats.largest = max(stats.largest, MIN_INTEGER + (largest % (1 << 64)))
    if layout.powers:
        for index, samples in enumerate(struct.unpack_from(f"={POWERS}q", data, BUCKETS)):
            if samples:
                stats.tally(stats.powers, index - 1)
                stats.powers[index - 1] += samples - 1
    for position, shape in enumerate(layout.shapes):
        buckets = stats.linear[shape]
        steps_of = 2 + steps(*shape)
        for index, samples in enumerate(struct.unpack_from(f"={steps_of}q", data, layout.shape_offset(position))):
            if samples:
                stats.tally(buckets, index - 1)
                buckets[index - 1] += samples - 1

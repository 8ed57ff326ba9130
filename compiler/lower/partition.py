"""Partition: which handlers go to the kernel, and where what they share lives.

A handler goes with all handlers it shares written state with, or stays. What handlers share may be,
in the kernel, a constant (nothing writes it), a sum (only added to and sampled: per CPU, merged
outside), or entries of the running thread (`Home.KEYED`), so that a run of a handler means what it
means when handlers run one at a time. Everything else stays in the VM, with the line and the reason.
"""

from __future__ import annotations

from typing import Callable, Dict, FrozenSet, Iterable, List, Mapping, Optional, Sequence, Set, Tuple

from compiler.lower.flat import (
    Branch,
    Constant,
    FlatHandler,
    NotLowered,
    Operand,
    Operation,
    Refused,
    Variable,
    successors,
)
from compiler.lower.flatten import flatten
from compiler.lower.infer import VALUE_KINDS, Access, EventType, Facts, TableFacts, Typing, infer
from compiler.lower.interrupts import EVENTS_OF_THREAD, SERIALIZED_BY_RUN_QUEUE, can_nest, comes_in_bursts
from compiler.lower.layouts import MOST_KEY_BYTES, MOST_PERCPU_BYTES, key_bytes
from compiler.lower.reach import Reach
from compiler.lower.snapshot import Closure, Snapshot
from compiler.lower.stops import can_stop
from compiler.lower.types import MAX_STRING_BYTES
from compiler.lower.webs import definitions, split, uses
from vm.named_tuple import NamedTuple
from vm.program import Span
from vm.values import Key, Table

CONSTANT, SUM, AGGREGATION, KEYED = "constant", "sum", "aggregation", "keyed"
"""Homes: written by nothing; added to; sampled; entries of the running thread, processor or task."""


TEST_FIRST = "test it for nil first"


class Candidate(NamedTuple):
    """A handler of events: its closure, the events it is for (`group:name`), the types of their values."""

    closure: Closure
    events: Tuple[str, ...]
    event_type: EventType


class TableHome(NamedTuple):
    """Where a table lives, and what it holds."""

    table: Table
    name: str
    home: str
    facts: TableFacts
    nested: bool
    """Whether an event that writes it can fire in the middle of another that does."""
    reused: bool = False
    """Whether handlers remove entries that a program may keep, marked as removed, for the next under the same key."""
    bursts: bool = False
    """Whether an event that writes it can fire many times before the kernel gets memory for new entries."""


class VariableHome(NamedTuple):
    """Where a variable lives."""

    variable: Variable
    home: str
    nested: bool


class Reason(NamedTuple):
    """Why a handler stays in the VM."""

    span: Optional[Span]
    text: str
    remedy: Optional[str]


class Plan(NamedTuple):
    """The outcome: handlers for the kernel in flat code, homes by id of the table and by variable, reasons by handler."""

    kernel: Mapping[int, FlatHandler]
    facts: Facts
    tables: Mapping[int, TableHome]
    variables: Mapping[Variable, VariableHome]
    reasons: Mapping[int, Reason]


class Surroundings(NamedTuple):
    """What partition asks about the script's run."""

    name_of: Callable[[Table], str]
    """A table's name for messages."""
    initial: Callable[[Variable], object]
    """What a variable holds now."""
    earlier: Callable[[int, FrozenSet[int]], Optional[int]]
    """The line of a handler in the VM that runs before a handler for the same event, given the handlers in the kernel."""
    string_bytes: int
    """The longest string that is read from memory."""
    built_bytes: int
    """The longest string that a script builds."""
    call_depth: int
    """Calls nested in one another."""
    stats_bytes: int
    """The size of an aggregation with all its buckets."""


def partition(
    snapshot: Snapshot,
    candidates: Mapping[int, Candidate],
    reach_of_vm: Callable[[FrozenSet[int]], Reach],
    surroundings: Surroundings,
) -> Plan:
    """Decide for every candidate.

    `reach_of_vm` tells what the handlers that stay in the VM while events fire (ticks, and the candidates
    named) read and write.
    """
    reasons: Dict[int, Reason] = {}
    flats: Dict[int, FlatHandler] = {}
    everything = reach_of_vm(frozenset(candidates))
    for number, candidate in candidates.items():
        try:
            flats[number] = split(
                flatten(
                    snapshot,
                    candidate.closure,
                    lambda table: not everything.table(table).written,
                    surroundings.call_depth,
                )
            )
        except NotLowered as why:
            reasons[number] = _reason(why)
    while True:
        kernel = {number: flat for number, flat in flats.items() if number not in reasons}
        types = {number: candidates[number].event_type for number in kernel}
        try:
            facts = infer(kernel, types, surroundings.initial, surroundings.string_bytes, surroundings.built_bytes)
            reach = reach_of_vm(frozenset(candidates) - frozenset(kernel))
            group = Group(candidates, kernel, facts, reach)
            _check_order(group, surroundings)
            if surroundings.stats_bytes > MOST_PERCPU_BYTES:
                _check_samples(group)
            tables = {i: _table_home(f, group, surroundings.name_of) for i, f in facts.tables.items()}
            variables = {v: _variable_home(v, group) for v in facts.variables}
            return Plan(kernel, facts, tables, variables, reasons)
        except Refused as refused:
            reasons[refused.handler] = _reason(refused.why)


def _reason(why: NotLowered) -> Reason:
    return Reason(why.span, why.reason, why.remedy)


class Group(NamedTuple):
    """Handlers that would be in the kernel, and what is known of them."""

    candidates: Mapping[int, Candidate]
    kernel: Mapping[int, FlatHandler]
    facts: Facts
    reach: Reach

    def events(self, handlers: Iterable[int]) -> Set[str]:
        """The events of handlers."""
        return {event for number in handlers for event in self.candidates[number].events}


def _check_order(group: Group, surroundings: Surroundings) -> None:
    """Refuse a handler that prints or ends the run where one in the VM has to come first: its record would be later."""
    for number, flat in group.kernel.items():
        line = surroundings.earlier(number, frozenset(group.kernel))
        if line is None:
            continue
        typing = Typing(group.facts, number, flat, group.candidates[number].event_type, surroundings.initial)
        acts = next((o for block in flat.blocks for o in block.operations if _is_seen(o)), None)
        if acts is None and can_stop(flat, typing, group.facts.entries[number]):
            acts = flat.blocks[0].operations[0]
        if acts is not None:
            reason = f"comes behind the handler of the same event at line {line}, which stays in the VM"
            raise Refused(number, NotLowered(acts.span, reason, "put it first"))


def _check_samples(group: Group) -> None:
    """Refuse handlers that sample where the buckets of an aggregation are more than a map can hold."""
    for number, flat in group.kernel.items():
        for block in flat.blocks:
            for operation in block.operations:
                if operation.op in ("SAMPLE", "STATADD"):
                    reason = f"adds samples to buckets of more than {MOST_PERCPU_BYTES} bytes"
                    raise Refused(number, NotLowered(operation.span, reason, "let lhist have fewer steps"))


def _is_seen(operation: Operation) -> bool:
    return operation.op == "BUILTIN" and operation.name in ("print", "printf", "exit")


# -- tables -----------------------------------------------------------------------------------


def _table_home(facts: TableFacts, group: Group, name_of: Callable[[Table], str]) -> TableHome:
    """Where a table can live. Raises Refused for a handler that keeps it from living anywhere."""
    name = name_of(facts.table)
    uses = {number: uses for number, uses in facts.accesses.items() if number in group.kernel}
    ops = {access.op for accesses in uses.values() for access in accesses}
    writers = [n for n, accesses in uses.items() if any(_writes(a) for a in accesses)]
    by_vm = group.reach.table(facts.table)
    nested = can_nest(group.events(writers))
    bursts = any(comes_in_bursts(event) for event in group.events(writers))
    if not writers and by_vm.written:
        _refuse(uses, f"reads `{name}`, which a handler in the VM changes while events fire")
    if writers and by_vm.shared_by_handler is not None:
        _refuse(uses, f"shares `{name}` with the handler at line {by_vm.shared_by_handler}, which stays in the VM")
    _check_types(facts, uses, name)
    if not writers:
        return TableHome(facts.table, name, CONSTANT, facts, False)
    if ops <= {"ADDINDEX", "SUBINDEX"} and facts.adds_nil is None:
        return TableHome(facts.table, name, SUM, facts, nested, bursts=bursts)
    if ops == {"SAMPLE"}:
        return TableHome(facts.table, name, AGGREGATION, facts, nested, bursts=bursts)
    try:
        if by_vm.written:
            _refuse(uses, f"reads `{name}`, which a tick changes", "let the handlers alone change it")
        _check_keyed(facts, uses, group, name)
    except Refused:
        if facts.adds_nil is None or not ops <= {"ADDINDEX", "SUBINDEX"}:
            raise
        number, span = facts.adds_nil
        raise Refused(number, NotLowered(span, "adds what may be nil, which removes the entry", TEST_FIRST)) from None
    removes = any(_removes(access) for accesses in uses.values() for access in accesses)
    plain = not facts.value.without("nil").is_bytes
    return TableHome(facts.table, name, KEYED, facts, nested, removes and plain and not nested, bursts)


def _removes(access: Access) -> bool:
    return access.op == "delete" or (access.op == "SETINDEX" and access.operation.arguments[2] == Constant(None))


def _writes(access: Access) -> bool:
    return access.op not in ("GETINDEX", "GETENTRY")


def _refuse(uses: Mapping[int, Set[Access]], reason: str, remedy: Optional[str] = None) -> None:
    number = min(uses)
    first = min(uses[number], key=lambda access: access.operation.span)
    raise Refused(number, NotLowered(first.operation.span, reason, remedy))


def _check_types(facts: TableFacts, uses: Mapping[int, Set[Access]], name: str) -> None:
    """Refuse keys or values of several types; an empty table that is only read has neither."""
    if len(facts.key.kinds) != 1 or any(len(part.kinds) != 1 for part in facts.key.parts):
        _refuse(uses, f"uses `{name}`, which has keys that are {facts.key}", "use keys of one type")
    if len(facts.value.without("nil").kinds) > 1:
        _refuse(uses, f"uses `{name}`, which has values that are {facts.value}", "keep values of one type")
    size = key_bytes(facts.key)
    if size > MOST_KEY_BYTES:
        reason = f"uses `{name}`, which has keys of up to {size} bytes (the most in the kernel is {MOST_KEY_BYTES})"
        _refuse(uses, reason, "user_string(p, n) and kernel_string(p, n) read n bytes at most")
    if any(has_nul(key) or has_nul(value) for key, value in facts.table.entries()):
        _refuse(uses, f"uses `{name}`, which has keys or values that only the VM can hold")
    if not facts.value.is_only(*VALUE_KINDS, "stats"):
        _refuse(uses, f"uses `{name}`, which has values that are {facts.value}: only the VM has such")


def has_nul(value: object) -> bool:
    """Whether there is a NUL in a string or in a part of a key: programs end strings there."""
    if isinstance(value, Key):
        return any(has_nul(part) for part in value.parts())
    return isinstance(value, bytes) and (b"\0" in value or len(value) > MAX_STRING_BYTES)


def _check_keyed(facts: TableFacts, uses: Mapping[int, Set[Access]], group: Group, name: str) -> None:
    """Refuse entries that handlers on other processors could change in the middle of a run."""
    if "stats" in facts.value.kinds:
        _refuse(uses, f"reads aggregations that are in `{name}`", "read them in a tick or in trace_end")
    ways: Set[str] = set()
    for number, accesses in uses.items():
        for access in accesses:
            operation = access.operation
            if access.key is None:
                raise Refused(number, NotLowered(operation.span, f"clears `{name}`, which other processors use"))
            way = _serialized(access.key, group.kernel[number], group.candidates[number].events)
            if way is None:
                reason = f"reads and changes `{name}` under a key that other processors can use at the same time"
                raise Refused(number, NotLowered(operation.span, reason, "key it by tid or cpu, or only add to it"))
            ways.add(way)
    if len(ways) > 1:
        _refuse(uses, f"keys `{name}` in more than one way ({', '.join(sorted(ways))})")
    if "task" not in min(ways) and can_nest(group.events(uses)):
        _refuse(uses, f"uses `{name}` for events of which one can interrupt another")


def _serialized(key: Operand, flat: FlatHandler, events: Sequence[str]) -> Optional[str]:
    """What keeps two handlers from using one key at the same time: `tid`, `cpu`, `task` (and which part), or None."""
    for operation in _origins(key, flat):
        if operation.op == "KEY":
            found = [_serialized(part, flat, events) for part in operation.arguments]
            ways = (f"{way} as part {n + 1}" for n, way in enumerate(found) if way is not None)
            return min(ways, key=lambda way: "task" in way, default=None)
        if operation.op == "EVENT":
            if operation.name in EVENTS_OF_THREAD:
                return operation.name
            field = operation.name.partition("args.")[2]
            if field and all((event, field) in SERIALIZED_BY_RUN_QUEUE for event in events):
                return "task"
        return None
    return None


def _origins(operand: Operand, flat: FlatHandler) -> List[Operation]:
    """The one operation that makes a register's value, followed through copies; none where there are several."""
    made = definitions(flat)
    while isinstance(operand, int):
        writers = made.get(operand, [])
        if len(writers) != 1:
            return []
        if writers[0].op != "MOVE":
            return writers
        operand = writers[0].arguments[0]
    return []


# -- variables --------------------------------------------------------------------------------


def _variable_home(variable: Variable, group: Group) -> VariableHome:
    """Where a variable can live. Raises Refused for a handler that keeps it from living anywhere."""
    readers: Dict[int, List[Operation]] = {}
    writers: Dict[int, List[Operation]] = {}
    for number, flat in group.kernel.items():
        for block in flat.blocks:
            for operation in block.operations:
                if operation.variable == variable:
                    found = writers if operation.op == "SETVAR" else readers
                    found.setdefault(number, []).append(operation)
    by_vm = group.reach.variable(variable)
    if not writers:
        number = min(readers)
        reason = f"reads `{variable.name}`, which changes while events fire"
        raise Refused(number, NotLowered(readers[number][0].span, reason))
    if by_vm.shared_by_handler is not None:
        reason = f"shares `{variable.name}` with the handler at line {by_vm.shared_by_handler}, which stays in the VM"
        raise Refused(min(writers), NotLowered(writers[min(writers)][0].span, reason))
    homes = set()
    for number in {**readers, **writers}:
        homes |= _additions(variable, number, group.kernel[number])
    if len(homes) > 1:
        number = min(writers)
        reason = f"adds to `{variable.name}` in one place and samples it in another"
        raise Refused(number, NotLowered(writers[number][0].span, reason))
    home = homes.pop()
    if home == SUM and not group.facts.variables[variable].is_only("integer"):
        number = min(writers)
        reason = f"adds to `{variable.name}`, which is {group.facts.variables[variable]}"
        raise Refused(number, NotLowered(writers[number][0].span, reason, "give it a number in the main chunk"))
    return VariableHome(variable, home, can_nest(group.events(writers)))


def _additions(variable: Variable, number: int, flat: FlatHandler) -> Set[str]:
    """The homes that a handler's uses of a variable allow: every read is for an addition that is stored back."""
    homes: Set[str] = set()
    pairs = additions(flat)
    changes = {id(o): change for pair in pairs for change in (pair.change,) for o in (pair.read, pair.store)}
    for block in flat.blocks:
        for operation in block.operations:
            if operation.variable != variable:
                continue
            change = changes.get(id(operation))
            if change is None:
                reason = f"reads `{variable.name}` and changes it, which other processors do at the same time"
                remedy = "only add to it, sample it (<<<) for its least or greatest, or keep it in a table keyed by tid or cpu"
                raise Refused(number, NotLowered(operation.span, reason, remedy))
            homes.add(AGGREGATION if change.op == "STATADD" else SUM)
    return homes


class Addition(NamedTuple):
    """A variable that is read, added to and stored back: three operations that are one update."""

    read: Operation
    change: Operation
    store: Operation

    @property
    def amount(self) -> Operand:
        """What is added (or taken away, or sampled)."""
        first, second = self.change.arguments
        return second if first == self.read.target else first


def additions(flat: FlatHandler) -> List[Addition]:
    """Every addition to a variable: the value read is used by the addition alone, its result by the store alone."""
    read_by, made_by = uses(flat), definitions(flat)
    branched = {b.terminator.condition for b in flat.blocks if isinstance(b.terminator, Branch)}
    found: List[Addition] = []
    for block in flat.blocks:
        for store in block.operations:
            if store.op != "SETVAR" or not isinstance(store.arguments[0], int):
                continue
            change = _only(made_by, store.arguments[0])
            if change is None or change.op not in ("ADD", "SUB", "STATADD"):
                continue
            reads = [_only(made_by, a) for a in change.arguments[: 2 if change.op == "ADD" else 1]]
            read = next((r for r in reads if r is not None and r.op == "GETVAR" and r.variable == store.variable), None)
            if read is None:
                continue
            assert read.target is not None and change.target is not None
            alone = read_by[read.target] == [change] and read_by[change.target] == [store]
            if alone and not {read.target, change.target} & branched and _undisturbed(flat, read, store):
                found.append(Addition(read, change, store))
    return found


def _undisturbed(flat: FlatHandler, read: Operation, store: Operation) -> bool:
    """Whether no way from a read of a variable to its store stores it elsewhere, or comes to the store once more."""
    start = next((n, block.operations.index(read)) for n, block in enumerate(flat.blocks) if read in block.operations)
    todo = [(start[0], start[1] + 1, False)]
    seen: Set[Tuple[int, bool]] = set()
    while todo:
        number, first, stored = todo.pop()
        for operation in flat.blocks[number].operations[first:]:
            if operation is read:
                break
            if operation.op == "SETVAR" and operation.variable == read.variable:
                if stored if operation is store else not stored:
                    return False
                stored = stored or operation is store
        else:
            following = {(target, stored) for target in successors(flat.blocks[number].terminator)} - seen
            seen |= following
            todo += [(target, 0, after) for target, after in following]
    return True


def _only(made_by: Mapping[int, List[Operation]], operand: Operand) -> Optional[Operation]:
    writers = made_by.get(operand, []) if isinstance(operand, int) else []
    return writers[0] if len(writers) == 1 else None

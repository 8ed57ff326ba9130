"""Partition: which handlers go to the kernel, and where what they share lives.

A handler goes with all handlers it shares written state with, or stays. What handlers share may be,
in the kernel, a constant (nothing writes it), a sum (only added to and sampled: per CPU, merged
outside), or entries of the running thread (`Home.KEYED`), so that a run of a handler means what it
means when handlers run one at a time. Everything else stays in the VM, with the line and the reason.
"""

from __future__ import annotations

from typing import Callable, Dict, FrozenSet, List, Mapping, NamedTuple, Optional, Sequence, Set, Tuple

from compiler.lower.flat import Branch, FlatHandler, NotLowered, Operand, Operation, Variable
from compiler.lower.flatten import flatten
from compiler.lower.infer import Access, EventType, Facts, Refused, TableFacts, infer
from compiler.lower.interrupts import EVENTS_OF_THREAD, NO_NESTING, SERIALIZED_BY_RUN_QUEUE
from compiler.lower.reach import Reach
from compiler.lower.snapshot import Closure, Snapshot
from compiler.lower.webs import definitions, split, uses
from vm.program import Span
from vm.values import Table

CONSTANT, SUM, AGGREGATION, KEYED = "constant", "sum", "aggregation", "keyed"
"""Homes: written by nothing; added to; sampled; entries of the running thread, processor or task."""


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
    programs: int
    """How many handlers write it: with one, no update can be interrupted by another."""


class VariableHome(NamedTuple):
    """Where a variable lives."""

    variable: Variable
    home: str
    programs: int


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


def partition(
    snapshot: Snapshot,
    candidates: Mapping[int, Candidate],
    reach_of_vm: Callable[[FrozenSet[int]], Reach],
    name_of: Callable[[Table], str],
    initial: Callable[[Variable], object],
) -> Plan:
    """Decide for every candidate.

    `reach_of_vm` tells what the handlers that stay in the VM while events fire (ticks, and the candidates
    named) read and write; `name_of` gives a table's name for messages.
    """
    reasons: Dict[int, Reason] = {}
    flats: Dict[int, FlatHandler] = {}
    for number, candidate in candidates.items():
        try:
            flats[number] = split(flatten(snapshot, candidate.closure))
        except NotLowered as why:
            reasons[number] = _reason(why)
    while True:
        kernel = {number: flat for number, flat in flats.items() if number not in reasons}
        types = {number: candidates[number].event_type for number in kernel}
        try:
            facts = infer(snapshot, kernel, types, initial)
            reach = reach_of_vm(frozenset(candidates) - frozenset(kernel))
            tables = {i: _table_home(f, candidates, kernel, reach, name_of) for i, f in facts.tables.items()}
            variables = {v: _variable_home(v, kernel, reach) for v in facts.variables}
            return Plan(kernel, facts, tables, variables, reasons)
        except Refused as refused:
            reasons[refused.handler] = _reason(refused.why)


def _reason(why: NotLowered) -> Reason:
    return Reason(why.span, why.reason, why.remedy)


# -- tables -----------------------------------------------------------------------------------


def _table_home(
    facts: TableFacts,
    candidates: Mapping[int, Candidate],
    kernel: Mapping[int, FlatHandler],
    reach: Reach,
    name_of: Callable[[Table], str],
) -> TableHome:
    """Where a table can live. Raises Refused for a handler that keeps it from living anywhere."""
    name = name_of(facts.table)
    uses = {number: uses for number, uses in facts.accesses.items() if number in kernel}
    ops = {access.op for accesses in uses.values() for access in accesses}
    writers = [n for n, accesses in uses.items() if any(_writes(a) for a in accesses)]
    by_vm = reach.table(facts.table)
    if not writers:
        if by_vm.written:
            _refuse(uses, f"reads `{name}`, which a handler in the VM changes while events fire")
        return TableHome(facts.table, name, CONSTANT, facts, 0)
    if by_vm.shared_by_handler is not None:
        _refuse(uses, f"shares `{name}` with the handler at line {by_vm.shared_by_handler}, which stays in the VM")
    _check_types(facts, uses, name)
    if ops <= {"ADDINDEX", "SUBINDEX"}:
        return TableHome(facts.table, name, SUM, facts, len(writers))
    if ops == {"SAMPLE"}:
        return TableHome(facts.table, name, AGGREGATION, facts, len(writers))
    if by_vm.written:
        _refuse(uses, f"a tick changes `{name}`, which handlers also read", "let the handlers alone change it")
    _check_keyed(facts, uses, candidates, kernel, name)
    return TableHome(facts.table, name, KEYED, facts, len(writers))


def _writes(access: Access) -> bool:
    return access.op not in ("GETINDEX", "GETENTRY")


def _refuse(uses: Mapping[int, Set[Access]], reason: str, remedy: Optional[str] = None) -> None:
    number = min(uses)
    first = min(uses[number], key=lambda access: access.operation.span)
    raise Refused(number, NotLowered(first.operation.span, reason, remedy))


def _check_types(facts: TableFacts, uses: Mapping[int, Set[Access]], name: str) -> None:
    """Refuse keys or values of several types."""
    if len(facts.key.kinds) != 1 or any(len(part.kinds) != 1 for part in facts.key.parts):
        _refuse(uses, f"`{name}` has keys that are {facts.key}", "use keys of one type")
    if len(facts.value.without("nil").kinds) > 1:
        _refuse(uses, f"`{name}` has values that are {facts.value}", "keep values of one type")


def _check_keyed(
    facts: TableFacts,
    uses: Mapping[int, Set[Access]],
    candidates: Mapping[int, Candidate],
    kernel: Mapping[int, FlatHandler],
    name: str,
) -> None:
    """Refuse entries that handlers on other processors could change in the middle of a run."""
    ways: Set[str] = set()
    for number, accesses in uses.items():
        for access in accesses:
            operation = access.operation
            if access.key is None:
                raise Refused(number, NotLowered(operation.span, f"clears `{name}`, which other processors use"))
            way = _serialized(access.key, kernel[number], candidates[number].events)
            if way is None:
                reason = f"reads and changes `{name}` under a key that other processors can use at the same time"
                raise Refused(number, NotLowered(operation.span, reason, "key it by tid or cpu, or only add to it"))
            ways.add(way)
    if len(ways) > 1:
        _refuse(uses, f"keys `{name}` in more than one way ({', '.join(sorted(ways))})")
    groups = {event.partition(":")[0] for number in uses for event in candidates[number].events}
    if len(uses) > 1 and not groups <= NO_NESTING:
        other = sorted(groups - NO_NESTING)[0]
        _refuse(uses, f"`{name}` is used by events of `{other}`, which can interrupt the others")


def _serialized(key: Operand, flat: FlatHandler, events: Sequence[str]) -> Optional[str]:
    """What keeps two handlers from using one key at the same time: `tid`, `cpu`, `task`, or None."""
    for operation in _origins(key, flat):
        if operation.op == "KEY":
            found = [_serialized(part, flat, events) for part in operation.arguments]
            return next((way for way in ("tid", "cpu", "task") if way in found), None)
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


def _variable_home(variable: Variable, kernel: Mapping[int, FlatHandler], reach: Reach) -> VariableHome:
    """Where a variable can live. Raises Refused for a handler that keeps it from living anywhere."""
    readers: Dict[int, List[Operation]] = {}
    writers: Dict[int, List[Operation]] = {}
    for number, flat in kernel.items():
        for block in flat.blocks:
            for operation in block.operations:
                if operation.variable == variable:
                    found = writers if operation.op == "SETVAR" else readers
                    found.setdefault(number, []).append(operation)
    by_vm = reach.variable(variable)
    if not writers:
        number = min(readers)
        reason = f"reads `{variable.name}`, which changes while events fire"
        raise Refused(number, NotLowered(readers[number][0].span, reason))
    if by_vm.shared_by_handler is not None:
        reason = f"shares `{variable.name}` with the handler at line {by_vm.shared_by_handler}, which stays in the VM"
        raise Refused(min(writers), NotLowered(writers[min(writers)][0].span, reason))
    homes = set()
    for number in {**readers, **writers}:
        homes |= _additions(variable, number, kernel[number])
    if len(homes) > 1:
        number = min(writers)
        reason = f"`{variable.name}` is added to in one place and sampled in another"
        raise Refused(number, NotLowered(writers[number][0].span, reason))
    return VariableHome(variable, homes.pop(), len(writers))


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
                remedy = "only add to it, or keep it in a table keyed by tid or cpu"
                raise Refused(number, NotLowered(operation.span, reason, remedy))
            homes.add(AGGREGATION if change.op == "STATADD" else SUM)
    return homes


class Addition(NamedTuple):
    """A variable that is read, added to and stored back: three operations of one block that are one update."""

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
            if read is None or read not in block.operations or change not in block.operations:
                continue
            assert read.target is not None and change.target is not None
            alone = read_by[read.target] == [change] and read_by[change.target] == [store]
            if alone and not {read.target, change.target} & branched:
                found.append(Addition(read, change, store))
    return found


def _only(made_by: Mapping[int, List[Operation]], operand: Operand) -> Optional[Operation]:
    writers = made_by.get(operand, []) if isinstance(operand, int) else []
    return writers[0] if len(writers) == 1 else None

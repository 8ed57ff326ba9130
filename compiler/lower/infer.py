"""Inference: the types of registers, variables and tables over a group of handlers.

Types only grow, from what the handlers store and what is there after the main chunk, until nothing
changes. A handler in which a type comes out that the kernel cannot hold is refused (NotLowered): it
stays in the VM.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import Callable, Dict, List, Mapping, Optional, Set, Tuple

from compiler.lower.flat import (
    Block,
    Branch,
    Constant,
    FlatHandler,
    NotLowered,
    Operand,
    Operation,
    Refused,
    Variable,
    live,
    order,
    successors,
)
from compiler.lower.formats import check_format
from compiler.lower.signature import SHOWING, SIGNATURES, STATES, state_name
from compiler.lower.types import (
    BOOLEAN,
    FUNCTION,
    INTEGER,
    MAX_STRING_BYTES,
    NIL,
    NOTHING,
    STATS,
    Type,
    join,
    of_constant,
    of_value,
    string,
)
from vm.named_tuple import NamedTuple
from vm.program import Span
from vm.values import Table

EventType = Callable[[str, Span], Type]
"""The type of an event's value by its name (`pid`, `args.filename`). Raises NotLowered for what has none here."""

State = Dict[int, Type]
"""Types of registers; one that is missing has no value yet."""

INTEGER_DIGITS = 20
"""The longest an integer is as text."""
ARITHMETIC = frozenset(["ADD", "SUB", "MUL", "DIV", "MOD", "BAND", "BOR", "BXOR", "SHL", "SHR", "NEG", "BITNOT"])
COMPARISONS = frozenset(["EQ", "NE", "LT", "LE", "NOT", "INRANGE", "ADVANCE"])
KEY_KINDS = ("integer", "probename", "string", "stack", "user stack", "address", "boolean", "key")
VALUE_KINDS = ("integer", "probename", "string", "boolean", "stack", "user stack", "address", "nil")


class Access(NamedTuple):
    """One use of a table by a handler: the operation (`delete` and `clear` are calls), its key, where."""

    op: str
    key: Optional[Operand]
    operation: Operation


class TableFacts:
    """What is known of one table: the types of its keys and values, and every use by the handlers."""

    __slots__ = ("accesses", "adds_nil", "key", "table", "value")

    def __init__(self, table: Table) -> None:
        self.table = table
        self.key = NOTHING
        self.value = NOTHING
        self.accesses: Dict[int, Set[Access]] = {}
        self.adds_nil: Optional[Tuple[int, Span]] = None
        """The handler, and where in it what may be nil is added to an entry."""
        for key, value in table.entries():
            self.key = join(self.key, of_value(key))
            self.value = join(self.value, of_value(value))


class Facts:
    """What was inferred: variables and tables of a group, and the types at the entry of every block of each handler."""

    def __init__(self, string_bytes: int = MAX_STRING_BYTES, built_bytes: int = MAX_STRING_BYTES) -> None:
        self.string_bytes = string_bytes
        self.built_bytes = min(built_bytes, MAX_STRING_BYTES)
        self.variables: Dict[Variable, Type] = {}
        self.tables: Dict[int, TableFacts] = {}
        self.entries: Dict[int, Dict[int, State]] = {}
        self.changed = False

    def table(self, table: Table) -> TableFacts:
        """The facts of a table, begun with its entries."""
        if id(table) not in self.tables:
            self.tables[id(table)] = TableFacts(table)
        return self.tables[id(table)]

    def widen_key(self, facts: TableFacts, key: Type) -> None:
        """Note a type of key."""
        wider = join(facts.key, key)
        self.changed |= wider != facts.key
        facts.key = wider

    def widen_value(self, facts: TableFacts, value: Type) -> None:
        """Note a type of value."""
        wider = join(facts.value, value)
        self.changed |= wider != facts.value
        facts.value = wider

    def widen_variable(self, variable: Variable, value: Type) -> None:
        """Note a type that a variable can have."""
        wider = join(self.variables.get(variable, NOTHING), value)
        self.changed |= wider != self.variables.get(variable)
        self.variables[variable] = wider


def infer(
    handlers: Mapping[int, FlatHandler],
    event_types: Mapping[int, EventType],
    initial: Callable[[Variable], object],
    string_bytes: int = MAX_STRING_BYTES,
    built_bytes: int = MAX_STRING_BYTES,
) -> Facts:
    """The facts of a group of handlers. `initial` gives what a variable holds now, `string_bytes` is the most that is
    read of a string, `built_bytes` the most that is made. Raises Refused.
    """
    facts = Facts(string_bytes, built_bytes)
    facts.changed = True
    while facts.changed:
        facts.changed = False
        for number, handler in handlers.items():
            try:
                facts.entries[number] = Typing(facts, number, handler, event_types[number], initial).run()
            except NotLowered as why:
                raise Refused(number, why) from why
    return facts


class Typing:
    """The types in one handler, given what is known of variables and tables."""

    def __init__(
        self,
        facts: Facts,
        number: int,
        handler: FlatHandler,
        event_type: EventType,
        initial: Callable[[Variable], object],
    ) -> None:
        self.facts, self.number, self.handler = facts, number, handler
        self.event_type, self.initial = event_type, initial

    def run(self) -> Dict[int, State]:
        """Types at the entry of every block that can be reached, of the registers that are used in it or behind it."""
        blocks = self.handler.blocks
        ranks = {number: rank for rank, number in enumerate(order(blocks))}
        used = live(blocks)
        entries: Dict[int, State] = {0: {}}
        todo = [(0, 0)]
        while todo:
            _, number = heappop(todo)
            for target, state in self.leave(blocks[number], dict(entries[number])):
                before = entries.get(target)
                after = {r: join(state.get(r, NIL), before.get(r, NIL) if before else NOTHING) for r in used[target]}
                if after != before:
                    entries[target] = after
                    if (ranks[target], target) not in todo:
                        heappush(todo, (ranks[target], target))
        return entries

    def leave(self, block: Block, state: State) -> List[Tuple[int, State]]:
        """The states in which a block is left, by the block that comes next."""
        for operation in block.operations:
            self.step(operation, state)
        end = block.terminator
        if isinstance(end, Branch) and isinstance(end.condition, int):
            return self.branches(block, end, end.condition, state)
        return [(target, state) for target in successors(end)]

    def branches(self, block: Block, end: Branch, condition: int, state: State) -> List[Tuple[int, State]]:
        """Both ways of a branch: what was tested against nil is known better behind it."""
        then, otherwise = dict(state), dict(state)
        kind = state.get(condition, NOTHING)
        if kind.can_be("boolean") and kind.is_mixed:
            raise NotLowered(block.operations[-1].span if block.operations else None, f"tests what may be {kind}")
        if kind.kinds and kind.is_only("nil"):
            return [(end.otherwise, otherwise)]
        if kind.kinds and not (kind.can_be("nil") or kind.can_be("boolean")):
            return [(end.then, then)]
        self.narrow(then, block, condition, lambda t: t.without("nil"))
        if not kind.can_be("boolean"):
            self.narrow(otherwise, block, condition, lambda t: NIL)
        test = _defining(block, condition)
        if test is not None and test.op in ("EQ", "NE") and Constant(None) in test.arguments:
            tested = next((a for a in test.arguments if isinstance(a, int)), None)
            if tested is not None and not _written_after(block, test, tested):
                isnil, isnot = (then, otherwise) if test.op == "EQ" else (otherwise, then)
                self.narrow(isnil, block, tested, lambda t: NIL)
                self.narrow(isnot, block, tested, lambda t: t.without("nil"))
        return [(end.then, then), (end.otherwise, otherwise)]

    def narrow(self, state: State, block: Block, register: int, change: Callable[[Type], Type]) -> None:
        """Refine a register and those that were copied to or from it in this block, and not written since."""
        for alias in {register, *_aliases(block, register)}:
            if alias in state:
                state[alias] = change(state[alias])

    def typed(self, block: Block, entry: State) -> List[Tuple[Operation, List[Type], Type]]:
        """Every operation of a block with the types of its arguments and of what it writes."""
        state = dict(entry)
        rows: List[Tuple[Operation, List[Type], Type]] = []
        for operation in block.operations:
            types = [self.type_of(a, state) for a in operation.arguments]
            self.step(operation, state)
            rows.append((operation, types, NIL if operation.target is None else state[operation.target]))
        return rows

    # -- operations ---------------------------------------------------------------------------

    def type_of(self, operand: Operand, state: State) -> Type:
        """The type of an operand; a register without a value is nil (the VM starts it so)."""
        return of_constant(operand) if isinstance(operand, Constant) else state.get(operand, NIL)

    def step(self, operation: Operation, state: State) -> None:
        """The effect of one operation on the types."""
        types = [self.type_of(a, state) for a in operation.arguments]
        result = self.result(operation, types)
        if operation.target is not None:
            state[operation.target] = result

    def result(self, operation: Operation, types: List[Type]) -> Type:
        """The type that an operation writes (of no matter where it writes nothing)."""
        op = operation.op
        if op != "MOVE" and (op != "SETVAR" or any(kind.can_be("argstr") for kind in types)):
            self.unmixed(operation, types)
        if op in ARITHMETIC:
            return self.arithmetic(operation, types)
        if op in COMPARISONS:
            if op in ("LT", "LE"):
                self.ordered(operation, types)
            if op in ("EQ", "NE"):
                self.comparable(operation, types)
            return BOOLEAN
        rule = getattr(self, "on_" + op.lower(), None)
        return rule(operation, types) if rule is not None else types[0] if types else NIL

    def unmixed(self, operation: Operation, types: List[Type]) -> None:
        """A value is of one type, or nil; whether it is nil may be asked of any. Either of two can be shown."""
        if operation.op == "NOT" or (operation.op in ("EQ", "NE") and NIL in types):
            types = [kind for kind in types if kind.can_be("boolean")]
        elif operation.op == "BUILTIN" and operation.name in SHOWING:
            types = [kind for kind in types if not kind.is_either]
        for kind in types:
            shown = operation.op == "MOVE" or (operation.op == "BUILTIN" and operation.name in SHOWING)
            if kind.can_be("argstr") and not shown:
                raise NotLowered(operation.span, "does more with argstr than to print it")
            if kind.is_mixed:
                raise NotLowered(operation.span, f"uses what may be {kind}", "keep each in a variable of its own")

    def arithmetic(self, operation: Operation, types: List[Type]) -> Type:
        """Integers, and nil from nil."""
        for kind in types:
            if not kind.is_only("integer", "nil", "address"):
                raise NotLowered(operation.span, f"computes with what may be {kind}")
        if any(t.is_only("nil") for t in types):
            return NIL
        return join(INTEGER, NIL) if any(t.can_be("nil") for t in types) else INTEGER

    def ordered(self, operation: Operation, types: List[Type]) -> None:
        """`<` wants two integers or two strings; nil is a fault."""
        types = [kind.without("nil") for kind in types]
        if not all(t.is_only("integer", "address") for t in types) and not all(t.is_only("string") for t in types):
            raise NotLowered(operation.span, f"compares what may be {types[0]} with what may be {types[1]}")

    def comparable(self, operation: Operation, types: List[Type]) -> None:
        """`==` of what has no number and is no string is left to the VM."""
        both = types[0].kinds & types[1].kinds
        if both & {"key", "stack", "user stack", "table", "function", "stats", "probename"}:
            raise NotLowered(operation.span, f"compares {types[0]} with {types[1]}")

    def on_move(self, operation: Operation, types: List[Type]) -> Type:
        """MOVE."""
        return types[0]

    def on_function(self, operation: Operation, types: List[Type]) -> Type:
        """FUNCTION."""
        return FUNCTION

    def on_concat(self, operation: Operation, types: List[Type]) -> Type:
        """CONCAT."""
        if not all(t.is_only("string", "integer") for t in types):
            raise NotLowered(operation.span, "joins what may be no string")
        size = sum(t.size_bytes if t.is_only("string") else INTEGER_DIGITS for t in types)
        if size > self.facts.built_bytes:
            raise NotLowered(
                operation.span,
                f"joins strings to what may be longer than {self.facts.built_bytes} bytes",
                "read less of them: user_string(p, 100)",
            )
        return string(size)

    def on_event(self, operation: Operation, types: List[Type]) -> Type:
        """EVENT."""
        return self.event_type(operation.name, operation.span)

    def on_key(self, operation: Operation, types: List[Type]) -> Type:
        """KEY: a part that is nil is a fault, so it is none in what comes after."""
        return Type(frozenset({"key"}), 0, tuple(t.without("nil") for t in types))

    def on_getvar(self, operation: Operation, types: List[Type]) -> Type:
        """GETVAR."""
        variable = operation.variable
        assert variable is not None
        if variable not in self.facts.variables:
            self.facts.widen_variable(variable, of_value(self.initial(variable)))
        return self.facts.variables[variable]

    def on_setvar(self, operation: Operation, types: List[Type]) -> Type:
        """SETVAR."""
        assert operation.variable is not None
        self.on_getvar(operation, types)
        self.facts.widen_variable(operation.variable, types[0])
        return NIL

    def on_builtin(self, operation: Operation, types: List[Type]) -> Type:
        """BUILTIN."""
        row = SIGNATURES.get(operation.name)
        if row is None:
            raise NotLowered(operation.span, f"calls {operation.name}, which only the VM has")
        if operation.name == "delete":
            facts = self.table_of(operation, operation.arguments[0] if operation.arguments else Constant(None))
            keyed = len(operation.arguments) > 1
            if len(operation.arguments) > 2:
                raise NotLowered(operation.span, "deletes under several values", "assign nil: t[a, b] = nil")
            if keyed:
                self.facts.widen_key(facts, self.key_type(operation, types[1]))
            self.note(facts, "delete" if keyed else "clear", operation, 1 if keyed else None)
        if operation.name in STATES:
            kind = self.event_type(state_name(operation), operation.span)
            return kind if operation.name == "curr_taskinfo" or kind == NIL else join(NIL, BOOLEAN)
        if operation.name == "printf":
            check_format(operation, types, self.facts.built_bytes)
        result = row.result(operation, types)
        return self._as_read(operation, result) if row.reads else result

    def _as_read(self, operation: Operation, result: Type) -> Type:
        """What is read of a string; one that the script may not hold is a fault of the VM's."""
        size = min(result.size_bytes, self.facts.string_bytes)
        if size > self.facts.built_bytes:
            reason = f"reads a string that may be longer than {self.facts.built_bytes} bytes"
            raise NotLowered(operation.span, reason, "read less of it, or raise --max-string")
        return result._replace(size_bytes=size)

    # -- tables -------------------------------------------------------------------------------

    def table_of(self, operation: Operation, operand: Operand) -> TableFacts:
        """The facts of the table that an operand is. Raises NotLowered where it is not one known table."""
        if not isinstance(operand, Constant) or not isinstance(operand.value, Table):
            raise NotLowered(
                operation.span, "uses a table that is not known before the event", "name a table of the main chunk"
            )
        return self.facts.table(operand.value)

    def note(self, facts: TableFacts, op: str, operation: Operation, key: Optional[int]) -> None:
        """Remember a use of a table."""
        uses = facts.accesses.setdefault(self.number, set())
        uses.add(Access(op, None if key is None else operation.arguments[key], operation))

    def key_type(self, operation: Operation, key: Type) -> Type:
        """The type a key adds to a table's keys: nil is a fault, so it is none."""
        key = key.without("nil")
        if not key.is_only(*KEY_KINDS) or len(key.kinds) > 1:
            raise NotLowered(operation.span, f"uses a key that may be {key}", "use keys of one type")
        for part in key.parts:
            if len(part.kinds) > 1 or not part.is_only(*KEY_KINDS):
                raise NotLowered(operation.span, f"uses a key with a part that may be {part}", "use keys of one type")
        return key

    def on_getindex(self, operation: Operation, types: List[Type]) -> Type:
        """GETINDEX."""
        return join(self.entry(operation, types), NIL)

    def on_getentry(self, operation: Operation, types: List[Type]) -> Type:
        """GETENTRY: 0 where there is none."""
        return join(self.entry(operation, types).without("nil"), INTEGER)

    def entry(self, operation: Operation, types: List[Type]) -> Type:
        """The values a table can hold."""
        facts = self.table_of(operation, operation.arguments[0])
        self.facts.widen_key(facts, self.key_type(operation, types[1]))
        self.note(facts, operation.op, operation, 1)
        return facts.value

    def on_setindex(self, operation: Operation, types: List[Type]) -> Type:
        """SETINDEX."""
        value = types[2]
        if not value.is_only(*VALUE_KINDS):
            raise NotLowered(operation.span, f"keeps a value that may be {value}")
        return self.store(operation, types, value.without("nil"))

    def on_addindex(self, operation: Operation, types: List[Type]) -> Type:
        """ADDINDEX and SUBINDEX: adding nil gives nil, which removes the entry (see partition)."""
        if not types[2].is_only("integer", "nil"):
            raise NotLowered(operation.span, f"adds what may be {types[2]}")
        facts = self.table_of(operation, operation.arguments[0])
        if types[2].can_be("nil"):
            facts.adds_nil = facts.adds_nil or (self.number, operation.span)
        return self.store(operation, types, INTEGER)

    on_subindex = on_addindex

    def on_sample(self, operation: Operation, types: List[Type]) -> Type:
        """SAMPLE."""
        if not types[2].is_only("integer", "nil"):
            raise NotLowered(operation.span, f"adds a sample that may be {types[2]}")
        return self.store(operation, types, STATS)

    def store(self, operation: Operation, types: List[Type], value: Type) -> Type:
        """Note what is stored under what."""
        facts = self.table_of(operation, operation.arguments[0])
        self.facts.widen_key(facts, self.key_type(operation, types[1]))
        self.facts.widen_value(facts, value)
        self.note(facts, operation.op, operation, 1)
        return NIL

    def on_statadd(self, operation: Operation, types: List[Type]) -> Type:
        """STATADD: an aggregation in a variable."""
        if not types[0].is_only("stats", "nil") or not types[1].is_only("integer", "nil"):
            raise NotLowered(operation.span, f"adds a sample that may be {types[1]} to what may be {types[0]}")
        return STATS


def _defining(block: Block, register: int) -> Optional[Operation]:
    """The operation of this block that wrote a register last."""
    return next((o for o in reversed(block.operations) if o.target == register), None)


def _written_after(block: Block, operation: Operation, register: int) -> bool:
    """Whether a register is written behind an operation of the block."""
    later = block.operations[block.operations.index(operation) + 1 :]
    return any(o.target == register for o in later)


def _aliases(block: Block, register: int) -> Set[int]:
    """Registers that hold the same value at the end of the block, by a MOVE in it."""
    found: Set[int] = set()
    written: Set[int] = set()
    for operation in reversed(block.operations):
        if operation.op == "MOVE" and operation.target is not None and operation.target not in written:
            source = operation.arguments[0]
            if isinstance(source, int) and source not in written and register not in written:
                if operation.target == register:
                    found.add(source)
                elif source == register:
                    found.add(operation.target)
        if operation.target is not None:
            written.add(operation.target)
    return found

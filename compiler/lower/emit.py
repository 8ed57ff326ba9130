"""Emission: a handler in flat code as LLVM IR, one method an operation.

Nothing here knows where an event comes from or how a record leaves (that is the Environment), and only
`compiler.ir.Writer` knows the target's calls. A handler's code ends at the label it is given; a fault
sends a record and goes there too.
"""

from __future__ import annotations

from typing import Callable, Dict, List, Optional, Sequence

from compiler.lower.flat import (
    Block,
    Branch,
    Constant,
    FlatHandler,
    Jump,
    NotLowered,
    Operand,
    Operation,
    ordered,
)
from compiler.lower.infer import Facts, Typing
from compiler.lower.layouts import MOST_PERCPU_BYTES
from compiler.lower.partition import Addition, VariableHome, additions
from compiler.lower.shared import Shared
from compiler.lower.texts import Texts
from compiler.lower.types import BOOLEAN, INTEGER, Type, join
from compiler.lower.values import Environment, Site, Value, of_constant
from compiler.lower.webs import definitions
from vm.named_tuple import NamedTuple
from vm.values import NAMES_WITH_ARTICLE

BINARY = {
    "ADD": "add",
    "SUB": "sub",
    "MUL": "mul",
    "BAND": "and",
    "BOR": "or",
    "BXOR": "xor",
}
COMPARE = {"EQ": "eq", "NE": "ne", "LT": "slt", "LE": "sle"}


def _one_of(value: Value, known: Type) -> Value:
    """What may be an integer or a string where it is known which."""
    if known.can_be("string"):
        return value._replace(type=known._replace(size_bytes=value.type.size_bytes), istext="false")
    return Value(known, value.number, value.isnil)


def article(name: str) -> str:
    """A type as the VM's messages name it (vm.values.describe)."""
    return NAMES_WITH_ARTICLE.get(name) or f"a {name}"


class Slot(NamedTuple):
    """A register that several operations write: room for its number, whether it is nil, its bytes and their length,
    and whether it is a string where it may be an integer too.
    """

    type: Type
    number: str
    isnil: str
    pointer: str
    length: str
    istext: str


class Emitter:
    """Writes one handler."""

    def __init__(
        self, environment: Environment, shared: Shared, handler: int, typing: Typing, end: str, prefix: str
    ) -> None:
        self.environment = environment
        self.w = environment.writer
        self.shared = shared
        self.flat: FlatHandler = shared.plan.kernel[handler]
        self.facts: Facts = shared.plan.facts
        self.entries = self.facts.entries[handler]
        self.typing = typing
        self.end = end
        self.prefix = prefix
        self.loops = any(o.op == "ROUND" for block in self.flat.blocks for o in block.operations)
        self.texts = Texts(self.w, prefix, on_stack=not self.loops)
        self.values: Dict[int, Value] = {}
        self.slots: Dict[int, Slot] = {}
        self.rounds: Optional[str] = None
        self.made = definitions(self.flat)
        self.updates: Dict[int, Addition] = {}
        """Additions by id of their operations; only the store of one emits code."""
        self.amounts: Dict[int, Value] = {}
        """What each adds, as it was when it was added."""
        for update in additions(self.flat):
            for operation in (update.read, update.change, update.store):
                self.updates[id(operation)] = update

    # -- the handler --------------------------------------------------------------------------

    def run(self) -> None:
        """Emit all blocks, from the current place on."""
        from compiler.lower.stores import Stores

        self.stores = Stores(self)
        mark = self.w.mark()
        self._make_slots()
        if self.loops:
            self.rounds = self.texts.room(8)
            self.w.store(8, 0, self.rounds)
        self.w.goto(self.label(0))
        for number in ordered(self._targets):  # so that a definition comes before what it dominates
            self.w.label(self.label(number))
            self._block(self.flat.blocks[number], number)
        if self.texts.room_bytes > MOST_PERCPU_BYTES:
            reason = f"holds more than {MOST_PERCPU_BYTES} bytes of strings at a time"
            raise NotLowered(None, reason, "read less of them: user_string(p, n), --max-event-string")
        self.texts.open_room(mark, self.end)

    def label(self, block: int) -> str:
        """The label of a block."""
        return f"{self.prefix}.{block}"

    def _targets(self, number: int) -> List[int]:
        block = self.flat.blocks[number]
        return [target for target, _ in self.typing.leave(block, dict(self.entries[number]))]

    def _make_slots(self) -> None:
        types: Dict[int, Type] = {}
        for number in self.entries:
            for operation, _, result in self.typing.typed(self.flat.blocks[number], self.entries[number]):
                if operation.target is not None and len(self.made[operation.target]) > 1:
                    before = types.get(operation.target)
                    types[operation.target] = result if before is None else join(before, result)
        for register, kind in types.items():
            if kind.can_be("key") or kind.can_be("argstr"):
                what = "a multi-key" if kind.can_be("key") else "argstr"
                raise NotLowered(self.made[register][0].span, f"keeps {what} that is made in several places")
            self.slots[register] = self._slot(kind)

    def _slot(self, kind: Type) -> Slot:
        """Room for what a value of the type consists of."""
        has_bytes = bool(kind.size_bytes)
        has_number = not kind.without("nil").is_only("string", "stack", "user stack", "function")
        wanted = (has_number, kind.can_be("nil"), has_bytes, kind.is_either)
        places = [self.texts.room(8) if needed else "" for needed in wanted]
        for place in places:
            if place:
                self.w.store(8, 0, place)
        number, isnil, length, istext = places
        return Slot(kind, number, isnil, self.texts.room(kind.size_bytes) if has_bytes else "", length, istext)

    def _block(self, block: Block, number: int) -> None:
        for operation, types, result in self.typing.typed(block, self.entries[number]):
            self._operation(operation, types, result)
        end = block.terminator
        targets = self._targets(number)
        if isinstance(end, Branch) and len(targets) == 2:
            condition = self.value(end.condition, None)
            self.w.branch(self.truth(condition), self.label(end.then), self.label(end.otherwise))
        elif targets:
            self.w.goto(self.label(targets[0]))
        else:
            assert not isinstance(end, Jump)
            self.w.goto(self.end)

    # -- registers ----------------------------------------------------------------------------

    def value(self, operand: Operand, known: Optional[Type]) -> Value:
        """The value of an operand; `known` is its type here, where that says more."""
        if isinstance(operand, Constant):
            return of_constant(operand.value)
        if operand in self.slots:
            value = self._load(self.slots[operand])
        else:
            value = self.values.get(operand, of_constant(None))
        if known is not None and value.type.is_either and not known.is_mixed:
            value = _one_of(value, known)
        if known is not None and not known.can_be("nil") and value.type.can_be("nil"):
            return value._replace(type=known._replace(size_bytes=value.type.size_bytes), isnil="false")
        return value

    def _load(self, slot: Slot) -> Value:
        isnil = self.w.value(f"icmp ne i64 {self.w.load(8, slot.isnil)}, 0") if slot.isnil else "false"
        length = self.w.load(8, slot.length) if slot.length else "0"
        number = self.w.load(8, slot.number) if slot.number else "0"
        istext = self.w.value(f"icmp ne i64 {self.w.load(8, slot.istext)}, 0") if slot.istext else "false"
        return Value(slot.type, number, isnil, slot.pointer, length, istext=istext)

    def keep(self, register: int, value: Value) -> None:
        """Write a register."""
        if register not in self.slots:
            self.values[register] = value
            return
        slot = self.slots[register]
        if slot.number:
            self.w.store(8, value.number, slot.number)
        if slot.isnil:
            self.w.store(8, self.w.value(f"zext i1 {value.isnil} to i64"), slot.isnil)
        if slot.pointer:
            length = self.texts.copy(value, slot.pointer, slot.type.size_bytes) if value.type.size_bytes else "0"
            self.w.store(8, length, slot.length)
        if slot.istext:
            istext = value.istext if value.type.is_either else "true" if value.type.can_be("string") else "false"
            self.w.store(8, self.w.value(f"zext i1 {istext} to i64"), slot.istext)

    # -- truth and faults ---------------------------------------------------------------------

    def truth(self, value: Value) -> str:
        """Whether a value is neither nil nor false, as an i1."""
        notnil = "true"
        if value.type.can_be("nil"):
            notnil = self.w.value(f"xor i1 {value.isnil}, true")
        if not value.type.can_be("boolean"):
            return notnil
        number = self.w.value(f"icmp ne i64 {value.number}, 0")
        return self.w.value(f"and i1 {notnil}, {number}")

    def fault_if(self, condition: str, kind: str, operation: Operation, detail: str) -> None:
        """Send a fault and end the handler where a condition (i1) holds."""
        wrong, right = self.w.fresh("fault"), self.w.fresh("l")
        self.w.branch(condition, wrong, right)
        self.w.label(wrong)
        self.fault(kind, operation, detail)
        self.w.label(right)

    def fault(self, kind: str, operation: Operation, detail: str) -> None:
        """Send a fault and end the handler; ends the block."""
        self.stop(Site(kind, operation.place.frames(operation.span), (), (), detail), ())

    def stop(self, site: Site, values: Sequence[Value]) -> None:
        """Send a record behind which no handler runs any more (a fault, exit), and end this one."""
        flag = self.w.lookup("stopped", self.w.index(0), self.end)
        self.w.store(8, 1, flag)
        self.environment.send(site, values, self.texts)
        self.w.goto(self.end)

    # -- operations ---------------------------------------------------------------------------

    def _operation(self, operation: Operation, types: List[Type], result: Type) -> None:
        update = self.updates.get(id(operation))
        if update is not None:
            if operation is update.change:
                self.amounts[id(update)] = self._amount(update, types)
            elif operation is update.store:
                self._update(update)
            return
        values = [self.value(a, t) for a, t in zip(operation.arguments, types)]
        value = self.compute(operation, values, result)
        if operation.target is not None:
            assert value is not None
            self.keep(operation.target, value)

    def _amount(self, update: Addition, types: List[Type]) -> Value:
        """What is added; a sample that is nil is a fault."""
        change = update.change
        if change.op != "STATADD":
            return self.value(update.amount, INTEGER)
        amount = self.value(update.amount, types[1])
        self.check_sample(amount, change)
        return amount

    def check_sample(self, value: Value, operation: Operation) -> None:
        """A fault for nil."""
        if value.type.can_be("nil"):
            self.fault_if(value.isnil, "type", operation, "`<<<` adds integers to an aggregation, not nil")

    def _update(self, update: Addition) -> None:
        variable = update.store.variable
        assert variable is not None
        home: VariableHome = self.shared.plan.variables[variable]
        self.stores.add_to_variable(home, update, self.amounts[id(update)])

    def compute(self, operation: Operation, values: List[Value], result: Type) -> Optional[Value]:
        """The value that an operation writes; None for one that writes nothing."""
        op = operation.op
        if op in BINARY:
            return self._nil_aware(values, result, lambda a, b: self.w.value(f"{BINARY[op]} i64 {a}, {b}"))
        if op in ("SHL", "SHR"):
            return self._nil_aware(values, result, lambda a, b: self._shift(op, a, b))
        if op in ("DIV", "MOD"):
            return self._divide(operation, values, result)
        if op in COMPARE:
            return self._compare(operation, values)
        if op in ("SETINDEX", "ADDINDEX", "SUBINDEX", "SAMPLE", "GETINDEX", "GETENTRY"):
            return self.stores.access(operation, values, result)
        if op == "BUILTIN":
            from compiler.lower.calls import call

            return call(self, operation, values, result)
        rule = getattr(self, "on_" + op.lower(), None)
        if rule is None:
            raise NotLowered(operation.span, f"uses {op}, which has no lowering")
        made: Optional[Value] = rule(operation, values, result)
        return made

    def _nil_aware(self, values: Sequence[Value], result: Type, make: Callable[[str, str], str]) -> Value:
        """Arithmetic whose result is nil where an operand is."""
        if result.is_only("nil"):
            return of_constant(None)
        number = make(values[0].number, values[1].number)
        isnil = "false"
        for value in values:
            if value.type.can_be("nil"):
                isnil = value.isnil if isnil == "false" else self.w.value(f"or i1 {isnil}, {value.isnil}")
        return Value(result, number, isnil)

    def _shift(self, op: str, a: str, b: str) -> str:
        count = self.w.value(f"and i64 {b}, 63")
        return self.w.value(f"{'shl' if op == 'SHL' else 'lshr'} i64 {a}, {count}")

    def _divide(self, operation: Operation, values: List[Value], result: Type) -> Value:
        """Truncating division by unsigned arithmetic, which every cpu version has; the signs are set by hand."""
        a, b = values[0].number, values[1].number
        w = self.w
        zero = w.value(f"icmp eq i64 {b}, 0")
        for value in values:
            if value.type.can_be("nil"):
                zero = w.value(f"and i1 {zero}, {w.value(f'xor i1 {value.isnil}, true')}")
        if not (isinstance(operation.arguments[1], Constant) and b != "0"):
            self.fault_if(zero, "divide", operation, "divide 0")
        safe = w.value(f"select i1 {w.value(f'icmp eq i64 {b}, 0')}, i64 1, i64 {b}")

        def divide(_a: str, _b: str) -> str:
            negative_a, negative_b = w.value(f"icmp slt i64 {a}, 0"), w.value(f"icmp slt i64 {safe}, 0")
            size_a = w.value(f"select i1 {negative_a}, i64 {w.value(f'sub i64 0, {a}')}, i64 {a}")
            size_b = w.value(f"select i1 {negative_b}, i64 {w.value(f'sub i64 0, {safe}')}, i64 {safe}")
            if operation.op == "DIV":
                size, negative = w.value(f"udiv i64 {size_a}, {size_b}"), w.value(f"xor i1 {negative_a}, {negative_b}")
            else:
                size, negative = w.value(f"urem i64 {size_a}, {size_b}"), negative_a
            return w.value(f"select i1 {negative}, i64 {w.value(f'sub i64 0, {size}')}, i64 {size}")

        return self._nil_aware(values, result, divide)

    def _compare(self, operation: Operation, values: List[Value]) -> Value:
        op, (left, right) = operation.op, values
        same = self._both("string", left, right)
        if op in ("LT", "LE"):
            self._check_order(operation, left, right)
            if left.type.is_only("nil") or right.type.is_only("nil"):
                return self.boolean("false")  # nothing comes here
            if same:
                test = self.texts.before(left, right, op == "LE")
            else:
                test = self.w.value(f"icmp {COMPARE[op]} i64 {left.number}, {right.number}")
            return self.boolean(test)
        equal = self._equal(left, right)
        return self.boolean(equal if op == "EQ" else self.w.value(f"xor i1 {equal}, true"))

    def _check_order(self, operation: Operation, left: Value, right: Value) -> None:
        """A fault where nil is compared: what it says names both types, as the VM does."""
        names = [max(value.type.without("nil").kinds, default="nil") for value in (left, right)]
        for left_nil, right_nil in ((True, True), (True, False), (False, True)):
            test = "true"
            for value, wanted in ((left, left_nil), (right, right_nil)):
                isnil = value.isnil if value.type.can_be("nil") else "false"
                held = isnil if wanted else self.w.value(f"xor i1 {isnil}, true")
                test = self.w.value(f"and i1 {test}, {held}")
            if (left_nil <= left.type.can_be("nil")) and (right_nil <= right.type.can_be("nil")):
                both = ["nil" if nil else article(name) for nil, name in zip((left_nil, right_nil), names)]
                self.fault_if(test, "type", operation, f"cannot compare {both[0]} and {both[1]}")

    def _both(self, kind: str, left: Value, right: Value) -> bool:
        return left.type.can_be(kind) and right.type.can_be(kind)

    def _equal(self, left: Value, right: Value) -> str:
        """Equality as an i1; false across types."""
        w = self.w
        test = "false"
        if self._both("string", left, right):
            test = self.texts.equal(left, right)
        elif left.type.can_be("probename") and right.constant is not None:
            test = self.environment.is_named(left.number, right.constant)
        elif right.type.can_be("probename") and left.constant is not None:
            test = self.environment.is_named(right.number, left.constant)
        elif left.type.can_be("probename") or right.type.can_be("probename"):
            other = right.type if left.type.can_be("probename") else left.type
            if other.can_be("string"):
                raise NotLowered(None, "compares probename with what is no constant")
        elif any(self._both(kind, left, right) for kind in ("integer", "boolean", "address")) or {
            *left.type.kinds,
            *right.type.kinds,
        } <= {"integer", "address", "nil"}:
            test = w.value(f"icmp eq i64 {left.number}, {right.number}")
        if not left.type.can_be("nil") and not right.type.can_be("nil"):
            return test
        isnil = [v.isnil if v.type.can_be("nil") else "false" for v in (left, right)]
        neither = w.value(f"xor i1 {w.value(f'or i1 {isnil[0]}, {isnil[1]}')}, true")
        both = w.value(f"and i1 {isnil[0]}, {isnil[1]}")
        return w.value(f"or i1 {both}, {w.value(f'and i1 {neither}, {test}')}")

    def boolean(self, test: str) -> Value:
        """A boolean from an i1."""
        return Value(BOOLEAN, self.w.value(f"zext i1 {test} to i64"))

    # -- one method an operation --------------------------------------------------------------

    def on_move(self, operation: Operation, values: List[Value], result: Type) -> Value:
        """MOVE; bytes of a register that is written again are copied."""
        value = values[0]
        if operation.arguments[0] in self.slots and operation.target not in self.slots and value.pointer:
            room = self.texts.room(value.type.size_bytes)
            length = self.texts.copy(value, room, value.type.size_bytes)
            return value._replace(pointer=room, length=length, zeros=False)
        return value

    def on_not(self, operation: Operation, values: List[Value], result: Type) -> Value:
        """NOT."""
        return self.boolean(self.w.value(f"xor i1 {self.truth(values[0])}, true"))

    def on_neg(self, operation: Operation, values: List[Value], result: Type) -> Value:
        """NEG."""
        return self._nil_aware([values[0], Value(INTEGER)], result, lambda a, _: self.w.value(f"sub i64 0, {a}"))

    def on_bitnot(self, operation: Operation, values: List[Value], result: Type) -> Value:
        """BITNOT."""
        return self._nil_aware([values[0], Value(INTEGER)], result, lambda a, _: self.w.value(f"xor i64 {a}, -1"))

    def on_function(self, operation: Operation, values: List[Value], result: Type) -> Value:
        """FUNCTION: nothing but its being there counts."""
        return Value(result)

    def on_concat(self, operation: Operation, values: List[Value], result: Type) -> Value:
        """CONCAT."""
        left, right = (v if v.type.can_be("string") else self.texts.decimal(v.number) for v in values)
        return self.texts.joined(left, right)

    def on_event(self, operation: Operation, values: List[Value], result: Type) -> Value:
        """EVENT."""
        return self.environment.event(operation.name, self.texts)

    def on_key(self, operation: Operation, values: List[Value], result: Type) -> Value:
        """KEY: nil in it is a fault."""
        for value in values:
            if value.type.can_be("nil"):
                self.fault_if(value.isnil, "key", operation, "nil cannot be part of a key")
        parts = tuple(v._replace(type=v.type.without("nil"), isnil="false") for v in values)
        return Value(result, parts=parts)

    def on_getvar(self, operation: Operation, values: List[Value], result: Type) -> Value:
        """GETVAR outside of an addition: partition lets none through."""
        raise NotLowered(operation.span, "reads a variable that changes")

    def on_setvar(self, operation: Operation, values: List[Value], result: Type) -> Optional[Value]:
        """SETVAR outside of an addition: partition lets none through."""
        raise NotLowered(operation.span, "assigns a variable")

    def on_statadd(self, operation: Operation, values: List[Value], result: Type) -> Value:
        """STATADD outside of an addition."""
        raise NotLowered(operation.span, "samples an aggregation that is no variable")

    def on_round(self, operation: Operation, values: List[Value], result: Type) -> Optional[Value]:
        """ROUND: one more loop round, a fault past the limit."""
        assert self.rounds is not None
        w = self.w
        number = w.value(f"add i64 {w.load(8, self.rounds)}, 1")
        w.store(8, number, self.rounds)
        over, within, further = w.fresh("over"), w.fresh("within"), w.fresh("further")
        w.branch(w.value(f"icmp ugt i64 {number}, {self.shared.limits.loop_rounds}"), over, within)
        w.label(within)
        w.may_go(over)
        w.goto(further)
        w.label(over)
        self.fault("loop", operation, "loop execute count exceed max limit")
        w.label(further)
        return None

    def on_checkint(self, operation: Operation, values: List[Value], result: Type) -> Optional[Value]:
        """CHECKINT: what may be no integer is left to the VM."""
        if not values[0].type.is_only("integer", "address"):
            raise NotLowered(operation.span, f"has a loop with a bound that may be {values[0].type}")
        return None

    def on_checkstep(self, operation: Operation, values: List[Value], result: Type) -> Optional[Value]:
        """CHECKSTEP."""
        zero = self.w.value(f"icmp eq i64 {values[0].number}, 0")
        if not isinstance(operation.arguments[0], Constant) or values[0].number == "0":
            self.fault_if(zero, "step", operation, "the step of a for loop is 0")
        return None

    def on_inrange(self, operation: Operation, values: List[Value], result: Type) -> Value:
        """INRANGE."""
        w, (value, last, step) = self.w, values
        up = w.value(f"icmp sle i64 {value.number}, {last.number}")
        down = w.value(f"icmp sge i64 {value.number}, {last.number}")
        forward = w.value(f"icmp sgt i64 {step.number}, 0")
        return self.boolean(w.value(f"select i1 {forward}, i1 {up}, i1 {down}"))

    def on_advance(self, operation: Operation, values: List[Value], result: Type) -> Value:
        """ADVANCE: one more round when the way to `last` is at least a step; it is not negative here, so it is unsigned."""
        w, (value, last, step) = self.w, values
        forward = w.value(f"icmp sgt i64 {step.number}, 0")
        up = w.value(f"sub i64 {last.number}, {value.number}")
        down = w.value(f"sub i64 {value.number}, {last.number}")
        way = w.value(f"select i1 {forward}, i64 {up}, i64 {down}")
        length = w.value(f"select i1 {forward}, i64 {step.number}, i64 {w.value(f'sub i64 0, {step.number}')}")
        return self.boolean(w.value(f"icmp uge i64 {way}, {length}"))

"""The instructions of one block of bytecode to flat code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Dict, List, Optional, Sequence, Tuple

from compiler.lower.flat import (
    Branch,
    Builtin,
    Call,
    Constant,
    Jump,
    Known,
    NotLowered,
    Operand,
    Operation,
    Place,
    Stop,
    Variable,
)
from compiler.lower.snapshot import Closure, Snapshot, text
from vm.aggregate import Stats
from vm.fault import Fault
from vm.named_tuple import NamedTuple
from vm.opcodes import BY_NAME, PACK
from vm.operators import BINARY
from vm.program import Function, Instruction, Span
from vm.values import Table

if TYPE_CHECKING:
    from compiler.lower.flatten import Flattener

COMPUTE = frozenset(
    [
        "NOT",
        "NEG",
        "BITNOT",
        "ADD",
        "SUB",
        "MUL",
        "DIV",
        "MOD",
        "BAND",
        "BOR",
        "BXOR",
        "SHL",
        "SHR",
        "CONCAT",
        "EQ",
        "NE",
        "LT",
        "LE",
        "GETINDEX",
        "GETENTRY",
        "STATADD",
    ]
)
STORE = frozenset(["SETINDEX", "ADDINDEX", "SUBINDEX", "SAMPLE"])
UNSUPPORTED = {
    "NEWTABLE": ("makes a table for each event", "make it in the main chunk and key it, for example by tid"),
    "SETLIST": ("makes a table for each event", "make it in the main chunk"),
    "ITERPREP": ("walks through a table for each event", "walk through it in a tick or in trace_end"),
    "ITERNEXT": ("walks through a table for each event", "walk through it in a tick or in trace_end"),
    "SYMBOL": ("looks up a kernel symbol for each event", "keep the address in a variable of the main chunk"),
    "PROBE": ("sets a probe", None),
}


MOST_NESTED = 16
"""Calls of a function in itself that are inlined: one whose constant arguments end it is done by then."""


class LocalClosure(NamedTuple):
    """A function made by the handler itself: upvalues are registers that hold boxed variables, or what the maker's are."""

    function: int
    upvalues: Tuple[object, ...]


class Pack(NamedTuple):
    """Several values in registers."""

    values: Tuple[Operand, ...]


class Frame(NamedTuple):
    """One call in progress: whose it is, where its registers begin, its upvalues, its extra arguments, where its results go."""

    place: Place
    function: Function
    base: int
    upvalues: Tuple[object, ...]
    extra: Tuple[Operand, ...]
    results: Optional[Tuple[int, ...]]
    after: Optional[int]


def boxed(snapshot: Snapshot, closure: Closure) -> Tuple[object, ...]:
    """The upvalues of a function value: constants where nothing writes the box any more, variables else."""
    names = snapshot.program.functions[closure.function].upvalues
    return tuple(
        Variable("box", id(box), upvalue.name) if id(box) in snapshot.written_boxes else Constant(box[0])
        for box, upvalue in zip(closure.boxes, names)
    )


class Walk:
    """The instructions of one block of one function."""

    def __init__(
        self,
        work: Flattener,
        frame: Frame,
        block_of: Dict[int, int],
        known: Known,
        active: Tuple[int, ...],
        start: int,
    ) -> None:
        self.work, self.frame, self.block_of, self.known, self.active = work, frame, block_of, known, active
        self.block = work.blocks[block_of[start]]
        self.index = start
        self.span = frame.function.spans[start] if frame.function.spans else Span(1, 1, 1, 1)
        self.targets: List[int] = []
        self.returned: Optional[Known] = None
        self.ended = False

    # -- operands -----------------------------------------------------------------------------

    def register(self, number: int) -> int:
        """The flat register of one of this function's."""
        return self.frame.base + number

    def value(self, operand: int) -> Operand:
        """A `v` operand: a constant where one is known."""
        if operand < 0:
            return Constant(self.work.snapshot.program.constants[~operand])
        register = self.register(operand)
        known = self.known.get(register)
        return known if isinstance(known, Constant) else register

    def name(self, constant: int) -> str:
        """A `k` operand that is a name."""
        return text(self.work.snapshot.program, constant)

    def emit(self, op: str, target: Optional[int], arguments: Sequence[Operand], name: str = "") -> None:
        """Append an operation; what was known of its target is no longer."""
        self._append(Operation(op, target, tuple(arguments), self.span, name))

    def _append(self, operation: Operation) -> None:
        self.block.operations.append(operation._replace(place=self.frame.place))
        if operation.target is not None:
            self.known.pop(operation.target, None)

    def move(self, target: int, value: Operand) -> None:
        """Copy a value, and what is known of it."""
        known = value if isinstance(value, Constant) else self.known.get(value)
        self.emit("MOVE", target, (value,))
        if known is not None:
            self.known[target] = known

    # -- flow ---------------------------------------------------------------------------------

    def go(self, target: int) -> None:
        """Continue at an instruction; backwards it is one more round of a loop."""
        if target <= self.index:
            self.emit("ROUND", None, ())
        self.block.terminator = Jump(self.block_of[target])
        self.targets.append(target)
        self.ended = True

    def choose(self, condition: Operand, then: int, otherwise: int) -> None:
        """Continue at one of two instructions."""
        if isinstance(condition, Constant):
            self.go(otherwise if condition.value is None or condition.value is False else then)
            return
        self.targets += [then, otherwise]
        self.block.terminator = Branch(condition, self._edge(then), self._edge(otherwise))
        self.ended = True

    def _edge(self, target: int) -> int:
        if target > self.index:
            return self.block_of[target]
        between = self.work.new_block()
        self.work.blocks[between].operations.append(Operation("ROUND", None, (), self.span, place=self.frame.place))
        self.work.blocks[between].terminator = Jump(self.block_of[target])
        return between

    # -- instructions -------------------------------------------------------------------------

    def step(self, index: int, instruction: Instruction, span: Span) -> None:
        """Flatten one instruction."""
        self.index, self.span = index, span
        op, a, b, c = instruction
        if op in UNSUPPORTED:
            reason, remedy = UNSUPPORTED[op]
            raise NotLowered(span, reason, remedy)
        if op in COMPUTE:
            operands = [self.value(o) for o in ((b, c) if BY_NAME[op].operands == "wvv" else (b,))]
            if op in ("GETINDEX", "GETENTRY") and self._known_entry(op, self.register(a), operands):
                return
            if self._known_result(op, self.register(a), operands):
                return
            self.emit(op, self.register(a), operands)
        elif op in STORE:
            self.emit(op, None, [self.value(a), self.value(b), self.value(c)])
        else:
            getattr(self, "op_" + op.lower())(a, b, c)

    def _known_entry(self, op: str, target: int, operands: Sequence[Operand]) -> bool:
        """Whether an entry is known, being that of a known key in a table that nothing changes."""
        table, key = operands
        if not isinstance(table, Constant) or not isinstance(key, Constant) or not isinstance(table.value, Table):
            return False
        entry = table.value.read(key.value)
        if not self.work.is_fixed(table.value) or isinstance(entry, Stats):
            return False
        self.move(target, Constant(0 if entry is None and op == "GETENTRY" else entry))
        return True

    def _known_result(self, op: str, target: int, operands: Sequence[Operand]) -> bool:
        """Whether what an operator gives is known, being that of constants; a fault is left to the run."""
        values = [operand.value for operand in operands if isinstance(operand, Constant)]
        if len(values) < len(operands) or not all(value is None or isinstance(value, (bytes, int)) for value in values):
            return False
        if op == "NOT":
            self.move(target, Constant(values[0] is None or values[0] is False))
            return True
        if op not in BINARY:
            return False
        try:
            result = BINARY[op](*values)
        except Fault:
            return False
        self.move(target, Constant(result))
        return True

    def op_move(self, a: int, b: int, _c: int) -> None:
        """MOVE."""
        self.move(self.register(a), self.value(b))

    op_box = op_unbox = op_move  # a box of the handler's own is a register

    def op_setbox(self, a: int, b: int, _c: int) -> None:
        """SETBOX: the box is a register here."""
        self.move(self.register(a), self.value(b))

    def op_jump(self, a: int, _b: int, _c: int) -> None:
        """JUMP."""
        self.go(a)

    def op_jumpif(self, a: int, b: int, _c: int) -> None:
        """JUMPIF."""
        self.choose(self.value(a), b, self.index + 1)

    def op_jumpifnot(self, a: int, b: int, _c: int) -> None:
        """JUMPIFNOT."""
        self.choose(self.value(a), self.index + 1, b)

    def op_forprep(self, a: int, b: int, _c: int) -> None:
        """FORPREP: check the bounds, then the first round or none."""
        first, last, step = (self.value(a + n) for n in range(3))
        for bound in (first, last, step):
            self.emit("CHECKINT", None, (bound,))
        self.emit("CHECKSTEP", None, (step,))
        self.move(self.register(a + 3), first)
        test = self.work.fresh(1)
        self.emit("INRANGE", test, (first, last, step))
        self.choose(test, self.index + 1, b)

    def op_forloop(self, a: int, b: int, _c: int) -> None:
        """FORLOOP: the next round or none."""
        counter, last, step = self.register(a), self.value(a + 1), self.value(a + 2)
        test = self.work.fresh(1)
        self.emit("ADVANCE", test, (counter, last, step))
        self.emit("ADD", counter, (counter, step))
        self.emit("MOVE", self.register(a + 3), (counter,))
        self.choose(test, b, self.index + 1)

    def op_getglobal(self, a: int, b: int, _c: int) -> None:
        """GETGLOBAL: a constant where nothing writes the global any more."""
        name = self.name(b)
        if name in self.work.snapshot.written_globals:
            self._get(self.register(a), Variable("global", b, name))
        else:
            self.move(self.register(a), Constant(self.work.snapshot.globals.get(name)))

    def op_setglobal(self, a: int, b: int, _c: int) -> None:
        """SETGLOBAL."""
        self._set(Variable("global", a, self.name(a)), self.value(b))

    def op_getup(self, a: int, b: int, _c: int) -> None:
        """GETUP."""
        upvalue = self.frame.upvalues[b]
        if isinstance(upvalue, Variable):
            self._get(self.register(a), upvalue)
        elif isinstance(upvalue, Constant):
            self.move(self.register(a), upvalue)
        else:
            assert isinstance(upvalue, int)
            self.move(self.register(a), upvalue)

    def op_setup(self, a: int, b: int, _c: int) -> None:
        """SETUP."""
        upvalue = self.frame.upvalues[a]
        if isinstance(upvalue, int):
            self.move(upvalue, self.value(b))
        elif isinstance(upvalue, Variable):
            self._set(upvalue, self.value(b))
        else:
            raise NotLowered(self.span, "assigns a variable of a function that it makes itself")

    def _get(self, target: int, variable: Variable) -> None:
        self._append(Operation("GETVAR", target, (), self.span, variable=variable))

    def _set(self, variable: Variable, value: Operand) -> None:
        self._append(Operation("SETVAR", None, (value,), self.span, variable=variable))

    def op_key(self, a: int, b: int, c: int) -> None:
        """KEY."""
        self.emit("KEY", self.register(a), [self.value(b + n) for n in range(c)])

    def op_event(self, a: int, b: int, _c: int) -> None:
        """EVENT."""
        self.emit("EVENT", self.register(a), (), self.name(b))

    def op_builtin(self, a: int, b: int, _c: int) -> None:
        """BUILTIN: known where it is called."""
        self._function(self.register(a), Builtin(self.name(b)))

    def _function(self, target: int, known: object) -> None:
        self.emit("FUNCTION", target, ())
        self.known[target] = known

    def op_closure(self, a: int, b: int, _c: int) -> None:
        """CLOSURE: known where it is called; its boxes are registers here."""
        made = self.work.snapshot.program.functions[b]
        upvalues = tuple(
            self.register(u.slot) if u.from_register else self.frame.upvalues[u.slot] for u in made.upvalues
        )
        self._function(self.register(a), LocalClosure(b, upvalues))

    def op_vararg(self, a: int, b: int, _c: int) -> None:
        """VARARG."""
        extra = self.frame.extra
        if b == PACK:
            self.known[self.register(a)] = Pack(extra)
            return
        for n in range(b):
            self.move(self.register(a + n), extra[n] if n < len(extra) else Constant(None))

    # -- calls --------------------------------------------------------------------------------

    def _arguments(self, first: int, count: int, packed: bool) -> Tuple[Operand, ...]:
        values = [self.value(first + n) for n in range(count - 1 if packed else count)]
        if packed:
            pack = self.known.get(self.register(first + count - 1))
            if not isinstance(pack, Pack):
                raise NotLowered(self.span, "passes on as many values as a call gives")
            values += pack.values
        return tuple(values)

    def op_call(self, a: int, b: int, c: int) -> None:
        """CALL."""
        self._call(a, self._arguments(a + 1, b, False), c)

    def op_callx(self, a: int, b: int, c: int) -> None:
        """CALLX."""
        self._call(a, self._arguments(a + 1, b, True), c)

    def _call(self, a: int, arguments: Tuple[Operand, ...], want: int) -> None:
        callee = self.known.get(self.register(a))
        if isinstance(callee, Builtin):
            self._call_builtin(a, callee, arguments, want)
            return
        function = self._script_function(callee)
        count = self._result_count(function.function) if want == PACK else want
        first = self.work.fresh(count) if want == PACK else self.register(a)
        results = tuple(range(first, first + count))
        here = self.frame.place
        self._inline(function, arguments, results, (Call(here.function, self.span), *here.callers))
        if want == PACK:
            self.known[self.register(a)] = Pack(results)

    def _call_builtin(self, a: int, callee: Builtin, arguments: Tuple[Operand, ...], want: int) -> None:
        target = self.register(a)
        self.emit("BUILTIN", target, arguments, callee.name)
        if want == PACK:
            result = self.work.fresh(1)
            self.emit("MOVE", result, (target,))
            self.known[target] = Pack((result,))
        for n in range(1, want):
            self.move(target + n, Constant(None))

    def _script_function(self, callee: object) -> LocalClosure:
        if isinstance(callee, LocalClosure):
            return callee
        closure = self.work.snapshot.closure_of(callee.value) if isinstance(callee, Constant) else None
        if closure is None:
            raise NotLowered(
                self.span, "calls what is not known before the event", "call a function that no handler assigns"
            )
        return LocalClosure(closure.function, boxed(self.work.snapshot, closure))

    def _result_count(self, number: int) -> int:
        code = self.work.snapshot.program.functions[number].code
        counts = {i.b for i in code if i.op == "RETURN"}
        if len(counts) != 1 or any(i.op in ("RETURNX", "TAILCALL", "TAILCALLX") for i in code):
            raise NotLowered(self.span, "passes on as many values as a call gives")
        return counts.pop()

    def _inline(
        self,
        callee: LocalClosure,
        arguments: Tuple[Operand, ...],
        results: Tuple[int, ...],
        callers: Tuple[Call, ...],
    ) -> None:
        work = self.work
        if self.active.count(callee.function) > MOST_NESTED:
            raise NotLowered(self.span, "calls itself", "write it as a loop")
        if 1 + len(callers) > work.call_depth:
            raise NotLowered(self.span, "nests calls deeper than the limit", "raise it with --max-depth")
        function = work.snapshot.program.functions[callee.function]
        base = work.fresh(function.registers)
        for n in range(function.parameters):
            self.move(base + n, arguments[n] if n < len(arguments) else Constant(None))
        entry, after = work.new_block(), work.new_block()
        extra = self._kept(arguments[function.parameters :]) if function.variadic else ()
        place = Place(callee.function, callers)
        frame = Frame(place, function, base, callee.upvalues, extra, results, after)
        self.block.terminator = Jump(entry)
        known = work.body(frame, entry, dict(self.known), (*self.active, callee.function))
        self.block = work.blocks[after]
        for result in results:
            self.known.pop(result, None)
        if known is None:  # it never returns
            self.ended = True
            return
        self.known = known

    def _kept(self, values: Sequence[Operand]) -> Tuple[Operand, ...]:
        """Copies of the values in registers that nothing else writes."""
        first = self.work.fresh(len(values))
        for n, value in enumerate(values):
            self.move(first + n, value)
        return tuple(range(first, first + len(values)))

    def op_tailcall(self, a: int, b: int, _c: int) -> None:
        """TAILCALL: a call, then its results are ours."""
        self._tail(a, self._arguments(a + 1, b, False))

    def op_tailcallx(self, a: int, b: int, _c: int) -> None:
        """TAILCALLX."""
        self._tail(a, self._arguments(a + 1, b, True))

    def _tail(self, a: int, arguments: Tuple[Operand, ...]) -> None:
        wanted = self.frame.results or ()
        callee = self.known.get(self.register(a))
        if isinstance(callee, Builtin):
            target = self.work.fresh(1)
            self.emit("BUILTIN", target, arguments, callee.name)
            self._leave((target,))
            return
        first = self.work.fresh(len(wanted))
        results = tuple(range(first, first + len(wanted)))
        self._inline(self._script_function(callee), arguments, results, self.frame.place.callers)
        if not self.ended:
            self._leave(results)

    def op_return(self, a: int, b: int, _c: int) -> None:
        """RETURN."""
        self._leave([self.value(a + n) for n in range(b)])

    def op_returnx(self, a: int, b: int, _c: int) -> None:
        """RETURNX."""
        self._leave(self._arguments(a, b, True))

    def _leave(self, values: Sequence[Operand]) -> None:
        frame = self.frame
        for n, target in enumerate(frame.results or ()):
            self.move(target, values[n] if n < len(values) else Constant(None))
        self.block.terminator = Stop() if frame.after is None else Jump(frame.after)
        self.returned = dict(self.known)
        self.ended = True

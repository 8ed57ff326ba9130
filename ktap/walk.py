"""The walk through a handler's bytecode: a forward data-flow over symbols (see ktap.needs)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Callable, Dict, List, Mapping, Optional, Set, Tuple

from ktap import demand, pointed
from ktap.abstract import (
    EXPRESSIONS,
    Box,
    Builtin,
    Closures,
    Known,
    Lasting,
    Pointed,
    Single,
    State,
    Symbol,
    Task,
    depth,
    lasting,
    merge,
    same,
    stored,
)
from ktap.demand import BYTES, KERNEL, STRING, USER
from vm.diagnostic import Diagnostic
from vm.named_tuple import NamedTuple
from vm.opcodes import BY_NAME, PACK
from vm.program import Function, Instruction, Program, Span

MOST_FRAMES = 127
"""Frames of a stack, as the kernel walks by default."""
MOST_STRING_BYTES = 4096
MOST_WALKS = 2000
"""Walks of functions for one handler; beyond that everything is asked for."""


Types = Callable[[], "Declarations"]
"""The C types that the script knows, after its main chunk."""


class MemoryRead(NamedTuple):
    """A builtin that reads memory: where, what, and how many bytes (0: the second argument says)."""

    space: str
    kind: str
    size_bytes: int


if TYPE_CHECKING:
    from vm.declaration import Declarations

READERS: Dict[str, MemoryRead] = {
    "user_string": MemoryRead(USER, STRING, 0),
    "kernel_string": MemoryRead(KERNEL, STRING, 0),
    "user_buf": MemoryRead(USER, BYTES, 0),
}
READERS.update({f"user_u{8 * size}": MemoryRead(USER, BYTES, size) for size in (1, 2, 4, 8)})
READERS.update({f"kernel_u{8 * size}": MemoryRead(KERNEL, BYTES, size) for size in (1, 2, 4, 8)})

STACKS = {"stack": KERNEL, "ustack": USER, "print_backtrace": KERNEL}
STATES = {"in_interrupt": "in_interrupt", "in_iowait": "in_iowait"}
OLDER_CONTEXT = {"usym": "pid", "signal": "pid"}
"""Builtins that ask for a variable of the event by themselves."""

REMEDY = "give it an argument of the event in the handler itself, as in user_string(arg1), and keep the string"
NAMED = 'write the name as it stands, as in curr_taskinfo("prio")'


class Facts:
    """What holds for the whole program: what globals and boxes hold, and which functions are loose."""

    def __init__(self, program: Program) -> None:
        self.globals: Dict[bytes, Optional[Symbol]] = {}
        self.boxes: Dict[Box, Optional[Symbol]] = {}
        self.upvalues: Dict[Tuple[int, int], Optional[Box]] = {}
        """The box behind an upvalue of a function; None when there are several."""
        self.loose: Set[int] = set()
        """Functions whose calls cannot be seen."""
        while True:
            before = (dict(self.globals), dict(self.boxes), dict(self.upvalues), set(self.loose))
            for index in range(len(program.functions)):
                Walk(program, self, MOST_STRING_BYTES, follow=False).function(index, ())
            if before == (self.globals, self.boxes, self.upvalues, self.loose):
                return

    def store_global(self, name: bytes, symbol: Optional[Symbol]) -> None:
        """Note what a global is given."""
        self.globals[name] = stored(self.globals[name], symbol) if name in self.globals else lasting(symbol)

    def store_box(self, box: Box, symbol: Optional[Symbol]) -> None:
        """Note what a box is given."""
        self.boxes[box] = stored(self.boxes[box], symbol) if box in self.boxes else lasting(symbol)


class Walk:
    """One handler with all it calls; without `follow`, one function by itself, to learn facts."""

    def __init__(
        self,
        program: Program,
        facts: Facts,
        string_bytes: int,
        follow: bool = True,
        types: Optional[Types] = None,
    ) -> None:
        self.program = program
        self.facts = facts
        self.string_bytes = string_bytes
        self.follow = follow
        self.types = types
        self.variables: Dict[str, Span] = {}
        self.reads: Set[demand.Read] = set()
        self.kernel = self.user = 0
        self.states: Dict[str, Span] = {}
        self.problems: List[Diagnostic] = []
        self._results: Dict[Tuple[int, Tuple[Optional[Symbol], ...]], Optional[Symbol]] = {}

    def call(self, index: int, arguments: Tuple[Optional[Symbol], ...]) -> Optional[Symbol]:
        """Walk a function for these arguments, once; what it returns."""
        if len(self._results) >= MOST_WALKS:
            arguments = ()
        key = (index, arguments)
        if key not in self._results:
            self._results[key] = None
            self._results[key] = self.function(index, arguments)
        return self._results[key]

    def function(self, index: int, arguments: Tuple[Optional[Symbol], ...]) -> Optional[Symbol]:
        """Walk all ways through a function; what it returns."""
        function = self.program.functions[index]
        entry: State = {}
        for register in range(function.parameters):
            symbol = arguments[register] if register < len(arguments) else None
            if symbol is not None:
                entry[register] = symbol
        return _Body(self, index, function).run(entry)


class _Body:
    """The instructions of one function: a forward data-flow over its registers."""

    def __init__(self, walk: Walk, index: int, function: Function) -> None:
        self.walk = walk
        self.index = index
        self.function = function
        self.constants = walk.program.constants
        self.facts = walk.facts
        self.returned: List[Optional[Symbol]] = []
        self.at = 0
        self.final = False
        """The states have settled: now things are recorded."""

    def run(self, entry: State) -> Optional[Symbol]:
        """Walk until nothing changes, then once more to record; what the function returns."""
        code = self.function.code
        states: Dict[int, State] = {0: entry}
        waiting = [0]
        while waiting:
            at = waiting.pop()
            state = dict(states[at])
            for target in self._targets(at, self.step(at, code[at], state)):
                merged = merge(states.get(target), state)
                if merged != states.get(target):
                    states[target] = merged
                    waiting.append(target)
        self.final = True
        for at in sorted(states):
            self.step(at, code[at], dict(states[at]))
        results = self.returned
        return results[0] if results and all(same(result, results[0]) for result in results) else None

    def _targets(self, at: int, jump: Optional[int]) -> List[int]:
        row = BY_NAME[self.function.code[at].op]
        targets = [] if row.ends else [at + 1]
        if jump is not None:
            targets.append(jump)
        return [target for target in targets if target < len(self.function.code)]

    def value(self, operand: int, state: State) -> Optional[Symbol]:
        """What is known of a `v` operand."""
        if operand >= 0:
            return state.get(operand)
        constant = self.constants[~operand]
        if isinstance(constant, int) and not isinstance(constant, bool):
            return demand.Number(constant)
        return Known(constant)

    def span(self) -> Span:
        """The place of the instruction at work."""
        return self.function.spans[self.at]

    def text(self, operand: int) -> str:
        """A `k` operand that is a string."""
        constant = self.constants[operand]
        return constant.decode("utf-8", "replace") if isinstance(constant, bytes) else ""

    def step(self, at: int, instruction: Instruction, state: State) -> Optional[int]:
        """Apply one instruction to the state; the target of its jump."""
        self.at = at
        op = instruction.op
        row = BY_NAME[op]
        jump = None
        for kind, operand in zip(row.operands, instruction[1:]):
            if kind == "j":
                jump = operand
        handler = STEPS.get(op)
        if handler is not None:
            handler(self, instruction, state)
        elif op in demand.OPERATORS:
            self._compute(instruction, state)
        else:
            self._other(instruction, state)
        return jump

    def put(self, state: State, register: int, symbol: Optional[Symbol]) -> None:
        """Set what is known of a register."""
        if symbol is None:
            state.pop(register, None)
        else:
            state[register] = symbol

    def _other(self, instruction: Instruction, state: State) -> None:
        """An instruction that is not looked into: functions it takes are loose, registers it writes unknown."""
        for kind, operand in zip(BY_NAME[instruction.op].operands, instruction[1:]):
            if kind == "v":
                self.loosen(self.value(operand, state))
        self._forget(instruction, state)

    def _forget(self, instruction: Instruction, state: State) -> None:
        op = instruction.op
        if op in RUNS:
            first, count = RUNS[op](instruction)
            for register in range(first, first + count):
                if op in READS_RUN:
                    self.loosen(state.get(register))
                else:
                    state.pop(register, None)
        if BY_NAME[op].operands.startswith("w"):
            state.pop(instruction.a, None)

    def loosen(self, symbol: Optional[Symbol]) -> None:
        """A function that goes where its calls cannot be seen."""
        if isinstance(symbol, Single):
            symbol = symbol.value
        if isinstance(symbol, Closures):
            self.facts.loose |= symbol.functions

    # -- instructions -----------------------------------------------------------------------------

    def _move(self, instruction: Instruction, state: State) -> None:
        self.put(state, instruction.a, self.value(instruction.b, state))

    def _compute(self, instruction: Instruction, state: State) -> None:
        left, right = self.value(instruction.b, state), self.value(instruction.c, state)
        symbol: Optional[Symbol] = None
        if isinstance(left, EXPRESSIONS) and isinstance(right, EXPRESSIONS):
            symbol = demand.Binary(instruction.op, left, right)
            if depth(symbol) > 8:
                symbol = None
        elif isinstance(left, Lasting) or isinstance(right, Lasting):
            symbol = left if isinstance(left, Lasting) else right
        self.put(state, instruction.a, symbol)

    def _event(self, instruction: Instruction, state: State) -> None:
        name = self.text(instruction.b)
        if self.final:
            self.walk.variables.setdefault(name, self.span())
        self.put(state, instruction.a, Task("curtask") if name == "curtask" else demand.Value(name))

    def _symbol(self, instruction: Instruction, state: State) -> None:
        self.put(state, instruction.a, demand.Symbol(self.text(instruction.b)))

    def _builtin(self, instruction: Instruction, state: State) -> None:
        self.put(state, instruction.a, Builtin(self.text(instruction.b)))

    def _closure(self, instruction: Instruction, state: State) -> None:
        made = instruction.b
        for slot, upvalue in enumerate(self.walk.program.functions[made].upvalues):
            if upvalue.from_register:
                symbol = state.get(upvalue.slot)
                box = symbol if isinstance(symbol, Box) else None
            else:
                box = self.facts.upvalues.get((self.index, upvalue.slot))
            key = (made, slot)
            self.facts.upvalues[key] = box if self.facts.upvalues.get(key, box) == box else None
        self.put(state, instruction.a, Closures(frozenset({made})))

    def _get_global(self, instruction: Instruction, state: State) -> None:
        self.put(state, instruction.a, self.facts.globals.get(self.text(instruction.b).encode()))

    def _set_global(self, instruction: Instruction, state: State) -> None:
        self.facts.store_global(self.text(instruction.a).encode(), self.value(instruction.b, state))

    def _box(self, instruction: Instruction, state: State) -> None:
        box = Box(self.index, self.at)
        self.facts.store_box(box, self.value(instruction.b, state))
        state[instruction.a] = box

    def _unbox(self, instruction: Instruction, state: State) -> None:
        symbol = state.get(instruction.b)
        self.put(state, instruction.a, self.facts.boxes.get(symbol) if isinstance(symbol, Box) else None)

    def _set_box(self, instruction: Instruction, state: State) -> None:
        symbol, value = state.get(instruction.a), self.value(instruction.b, state)
        if isinstance(symbol, Box):
            self.facts.store_box(symbol, value)
        else:
            self.loosen(value)

    def _get_upvalue(self, instruction: Instruction, state: State) -> None:
        box = self.facts.upvalues.get((self.index, instruction.b))
        self.put(state, instruction.a, self.facts.boxes.get(box) if box is not None else None)

    def _set_upvalue(self, instruction: Instruction, state: State) -> None:
        box, value = self.facts.upvalues.get((self.index, instruction.a)), self.value(instruction.b, state)
        if box is not None:
            self.facts.store_box(box, value)
        else:
            self.loosen(value)

    def _index(self, instruction: Instruction, state: State) -> None:
        table, key = self.value(instruction.b, state), self.value(instruction.c, state)
        symbol: Optional[Symbol] = None
        if isinstance(table, Task) and isinstance(key, Known) and isinstance(key.value, bytes):
            symbol = Task(f"{table.path}.{key.value.decode('utf-8', 'replace')}")
            if self.final:
                self.walk.variables.setdefault(symbol.path, self.span())
        elif isinstance(table, Pointed) and self.walk.types is not None:
            symbol = pointed.member(self.walk.types(), table, key, self.note)
        self.put(state, instruction.a, symbol)

    def _probe(self, instruction: Instruction, state: State) -> None:
        """The handler of a probe is walked as one."""

    def _call(self, instruction: Instruction, state: State) -> None:
        first, results = instruction.a, instruction.c
        symbol = self.called(state.get(first), self._arguments(instruction, state))
        for register in range(first, first + (1 if results == PACK else results)):
            state.pop(register, None)
        if results == PACK and symbol is not None and not isinstance(symbol, Single):
            state[first] = Single(symbol)
        elif results >= 1:
            self.put(state, first, symbol)

    def _arguments(self, instruction: Instruction, state: State) -> Tuple[Optional[Symbol], ...]:
        """What is known of the arguments of a call; a pack at their end is spread where it holds one value."""
        first, count = instruction.a + 1, instruction.b
        symbols = [state.get(register) for register in range(first, first + count)]
        if instruction.op.endswith("X"):
            last = symbols.pop()
            if isinstance(last, Single):
                symbols.append(last.value)
        return tuple(symbols)

    def _tail_call(self, instruction: Instruction, state: State) -> None:
        self.returned.append(self.called(state.get(instruction.a), self._arguments(instruction, state)))

    def _return(self, instruction: Instruction, state: State) -> None:
        for register in range(instruction.a, instruction.a + max(0, instruction.b)):
            self.loosen(state.get(register))
        symbol = state.get(instruction.a) if instruction.b == 1 else None
        self.returned.append(symbol.value if isinstance(symbol, Single) else symbol)

    # -- calls ------------------------------------------------------------------------------------

    def called(self, callee: Optional[Symbol], arguments: Tuple[Optional[Symbol], ...]) -> Optional[Symbol]:
        """What a call returns, its demands noted."""
        if isinstance(callee, Closures):
            if not self.walk.follow:
                return None
            results = [self.walk.call(function, arguments) for function in sorted(callee.functions)]
            return results[0] if all(same(result, results[0]) for result in results) else None
        for argument in arguments:
            self.loosen(argument)
        if isinstance(callee, Builtin):
            return self.asked(callee.name, arguments)
        return None

    def note(self, read: demand.Read) -> None:
        """Memory that is read through a typed pointer."""
        if self.final:
            self.walk.reads.add(read)

    def asked(self, name: str, arguments: Tuple[Optional[Symbol], ...]) -> Optional[Symbol]:
        """What a builtin asks of the event; what is known of its result."""
        if self.walk.types is not None and name == "ffi.cast" and len(arguments) > 1:
            text = arguments[0].value if isinstance(arguments[0], Known) else None
            return pointed.cast(self.walk.types(), text.decode(), arguments[1]) if isinstance(text, bytes) else None
        if self.walk.types is not None and name in pointed.SOCKET_MEMBERS and arguments:
            pointed.socket_member(self.walk.types(), arguments[0], pointed.SOCKET_MEMBERS[name], self.note)
        if name in READERS:
            return self._memory(name, READERS[name], arguments)
        if not self.final:
            return None
        if name in STACKS:
            frames = _frames(arguments)
            if STACKS[name] == KERNEL:
                self.walk.kernel = max(self.walk.kernel, frames)
            else:
                self.walk.user = max(self.walk.user, frames)
        if name in STATES:
            self.walk.states.setdefault(STATES[name], self.span())
        if name in OLDER_CONTEXT:
            self.walk.variables.setdefault(OLDER_CONTEXT[name], self.span())
        if name == "curr_taskinfo":
            self._member(arguments[0] if arguments else None)
        return None

    def _member(self, name: Optional[Symbol]) -> None:
        if isinstance(name, Known) and isinstance(name.value, bytes):
            self.walk.states.setdefault(name.value.decode("utf-8", "replace"), self.span())
        elif not isinstance(name, Known):
            self._problem("curr_taskinfo: it cannot be told when the event fires which member it reads", NAMED)

    def _memory(self, name: str, reader: MemoryRead, arguments: Tuple[Optional[Symbol], ...]) -> Optional[demand.Read]:
        address = arguments[0] if arguments else Known(None)
        if isinstance(address, Known):
            return None  # nil reads nothing, anything else is a fault when it runs
        if isinstance(address, (Task, Pointed)):
            address = pointed.address_of(address)
        if not isinstance(address, EXPRESSIONS):
            self._refuse(name, address)
            return None
        most, length = reader.size_bytes, None
        if most == 0:
            most = self.walk.string_bytes
            given = arguments[1] if len(arguments) > 1 else None
            if isinstance(given, demand.Number):
                most = max(0, min(most, given.value))
            elif reader.kind == BYTES and isinstance(given, EXPRESSIONS):
                length = given
        read = demand.Read(reader.space, reader.kind, address, most + (reader.kind == STRING), length)
        if self.final and most:
            self.walk.reads.add(read)
        return read if reader.size_bytes else None

    def _refuse(self, name: str, address: Optional[Symbol]) -> None:
        reason = "it cannot be told when the event fires which address it reads"
        if isinstance(address, Lasting):
            reason = f"the address comes from `{address.name}` of an event that is over when this one fires"
        self._problem(f"{name}: {reason}", REMEDY)

    def _problem(self, message: str, hint: str) -> None:
        problem = Diagnostic(self.walk.program.source_name, self.span(), message, hint)
        if self.final and self.walk.follow and problem not in self.walk.problems:
            self.walk.problems.append(problem)


def _frames(arguments: Tuple[Optional[Symbol], ...]) -> int:
    """Frames that stack(depth, skip) needs: all, unless both are constants."""
    total = 0
    for index, default in ((0, MOST_FRAMES), (1, 0)):
        symbol = arguments[index] if index < len(arguments) else Known(None)
        if isinstance(symbol, demand.Number):
            total += symbol.value
        elif symbol == Known(None):
            total += default
        else:
            return MOST_FRAMES
    return max(1, min(total, MOST_FRAMES))


STEPS = {
    "MOVE": _Body._move,
    "EVENT": _Body._event,
    "SYMBOL": _Body._symbol,
    "BUILTIN": _Body._builtin,
    "CLOSURE": _Body._closure,
    "GETGLOBAL": _Body._get_global,
    "SETGLOBAL": _Body._set_global,
    "BOX": _Body._box,
    "UNBOX": _Body._unbox,
    "SETBOX": _Body._set_box,
    "GETUP": _Body._get_upvalue,
    "SETUP": _Body._set_upvalue,
    "GETINDEX": _Body._index,
    "PROBE": _Body._probe,
    "CALL": _Body._call,
    "CALLX": _Body._call,
    "TAILCALL": _Body._tail_call,
    "TAILCALLX": _Body._tail_call,
    "RETURN": _Body._return,
    "RETURNX": _Body._return,
}
"""Instructions that are looked into."""

RUNS: Mapping[str, Callable[[Instruction], Tuple[int, int]]] = {
    "FORPREP": lambda i: (i.a + 3, 1),
    "FORLOOP": lambda i: (i.a, 4),
    "ITERPREP": lambda i: (i.b, 3),
    "ITERNEXT": lambda i: (i.a, 1 + i.b),
    "KEY": lambda i: (i.b, i.c),
    "SETLIST": lambda i: (i.b, max(1, i.c)),
    "VARARG": lambda i: (i.a, max(1, i.b)),
}
"""Registers that other instructions take or give: the first and how many."""
READS_RUN = frozenset(("ITERPREP", "KEY", "SETLIST"))
"""Those that take them."""

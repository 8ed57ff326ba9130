"""The machine: runs the functions of one program under its limits.

    machine = Machine(program, output, host)
    machine.run_main()                  # sets machine.probes and machine.handlers
    machine.deliver(records, points)    # runs handlers on events
    machine.run_handler(handler, event) # runs one: a tick, trace_end

Every run of script code is bounded: loop rounds and calls are iterators in the namespace of the
translated code that are renewed for each run, call depth is an argument of every call, what is held in
memory is `vm.memory`'s. Whatever ends a run early is a `Fault`, whose frames say where it happened, or
an `Exit`.

What builtins use of a machine is written down in `vm.library.builtin.Machine`.
"""

from __future__ import annotations

from itertools import groupby, repeat
from operator import itemgetter
from sys import _getframe, getrecursionlimit, setrecursionlimit
from types import CodeType, FrameType, FunctionType
from typing import (
    TYPE_CHECKING,
    Callable,
    Dict,
    Iterable,
    Iterator,
    List,
    Mapping,
    Optional,
    Protocol,
    Sequence,
    Tuple,
    Union,
    cast,
)

from vm import operators
from vm.aggregate import Stats, keeping
from vm.event import Action, Bulk, Event, Probe
from vm.fault import Exit, Fault, Frame
from vm.host import Host
from vm.idle import IdleEvent
from vm.library import install
from vm.limits import MAX_CALLBACKS, MIN_CALLS, Limits
from vm.memory import STATS_BYTES, Account, Apart
from vm.named_tuple import NamedTuple
from vm.names import Name, namespace
from vm.program import Program, Span
from vm.translate import CALLS, Translation, Translator
from vm.values import (
    TAIL,
    Address,
    EventValue,
    describe,
    tostring,
    wrap,
)

if TYPE_CHECKING:
    from vm.c_types import Types
    from vm.library.builtin import Machine as LibraryMachine

Pack = Tuple[object, ...]
Point = Tuple[Event, Sequence[Union[int, Action]]]

FRAMES_A_CALL = 4
"""Python frames that one call of the script takes at most: its own, a builtin's with its checks, a comparison's."""
SPARE_FRAMES = 1_000
MAX_PROBES = 10_000
"""A script that sets probes in an endless loop must not take memory for ever."""


class Sink(Protocol):
    """Where output goes (`vm.output.Output`)."""

    def write(self, data: bytes) -> None:
        """Take bytes. Raises Fault("output") and Exit."""

    def flush(self) -> None:
        """Let out what was taken. Raises Exit."""

    def tick(self, now_ns: int) -> None:
        """Let out what has waited for long enough. Raises Exit."""


class Options(NamedTuple):
    """What the one who runs a script may say about it."""

    limits: Limits = Limits()
    arguments: Mapping[Name, object] = {}
    """The table `arg`: the script's name under 0, its arguments from 1, its options by name."""
    unsafe: bool = False
    """--unsafe: system() and signal() are open."""
    types: Optional[Types] = None
    """Where C types are looked up (the kernel's BTF)."""


class Bound(NamedTuple):
    """A point's event and what is called for it: (handler, its arguments after the depth, can it loop or call).

    `many` does all of it for several records.
    """

    event: Event
    calls: Tuple[Tuple[Callable[..., object], Tuple[object, ...], bool], ...]
    many: Optional[Callable[[Sequence[Tuple[object, ...]]], None]] = None


class Machine(Apart):
    """One program in execution. Attributes are what builtins and the run loop may use."""

    def __init__(
        self,
        program: Program,
        output: Sink,
        host: Host,
        options: Options = Options(),  # noqa: B008
    ) -> None:
        """`program` has passed the verifier."""
        self.program = program
        self.output = output
        self.host = host
        self.limits = options.limits
        self.unsafe = options.unsafe
        self.types = options.types
        self.account = Account(options.limits, self.roots)
        self.keeping = keeping(program, self.account.charge)
        self.event: Optional[Event] = None
        """The event whose handler runs, None outside of one."""
        self.probes: List[Probe] = []
        self.handlers: List[FunctionType] = []
        self.bulk = False
        """Whether something is done for many records at once."""
        self.codes: Dict[int, Tuple[int, Translation]] = {}
        """By id of the code object: those of functions that are alike are equal."""
        """Of each translated function: its number and its translation."""
        self.in_main = False
        self.unhurried = False
        """True while code runs whose end may be far off: the main chunk, a tick, trace_end."""
        self.interrupted = False
        self.callbacks = 0
        """How many builtins and loops are calling a function of the script within each other."""
        self.builtins = install(cast("LibraryMachine", self))  # its protocol asks less of an output
        self.translator = Translator(program)
        self.idle = IdleEvent(host)
        self.names: Dict[str, object] = namespace(self, options.arguments)
        """The namespace of the translated code."""
        setrecursionlimit(max(getrecursionlimit(), FRAMES_A_CALL * self.limits.call_depth + SPARE_FRAMES))

    # -- functions ----------------------------------------------------------------------------

    def maker(self, number: int) -> Callable[..., FunctionType]:
        """Makes closures of a function: at its first call it translates it and puts what came out in its own place."""

        def make(*boxes: object) -> FunctionType:
            name = f"make{number}"
            translation = self.translator.translate(number)
            exec(compile(translation.source, f"<function {number}>", "exec"), self.names)
            made = self.names[name]
            assert isinstance(made, FunctionType)
            code = next(constant for constant in made.__code__.co_consts if isinstance(constant, CodeType))
            self.codes[id(code)] = number, translation
            closure: FunctionType = made(*boxes)
            return closure

        return make

    def function_number(self, function: object) -> Optional[int]:
        """Which function of the program a closure is of; None for a builtin and anything else."""
        known = self.codes.get(id(function.__code__)) if isinstance(function, FunctionType) else None
        return None if known is None else known[0]

    # -- what translated code calls -----------------------------------------------------------

    def call(self, depth: int, function: object, *arguments: object) -> object:
        """Call a function from a builtin that was called at `depth`: a value, or a pack of none or several."""
        if not isinstance(function, FunctionType):
            raise operators.not_callable_fault(function)
        if self.callbacks >= MAX_CALLBACKS:
            raise Fault("depth", "stack overflow", f"builtins call functions at most {MAX_CALLBACKS} deep")
        self.callbacks += 1
        try:
            result = function(depth + 1, *arguments)
            return self.settle(depth + 1, result) if type(result) is tuple else result
        finally:
            self.callbacks -= 1

    def settle(self, depth: int, result: object) -> object:
        """A result with its tail calls made: a value, or a pack."""
        while type(result) is tuple and result and result[0] is TAIL:
            result = result[1](depth, *result[2:])
        return result

    def one(self, depth: int, result: object) -> object:
        """A result as one value."""
        settled = self.settle(depth, result)
        if type(settled) is tuple:
            return settled[0] if settled else None
        return settled

    def pack(self, depth: int, result: object) -> Pack:
        """A result as a pack."""
        settled = self.settle(depth, result)
        return settled if type(settled) is tuple else (settled,)

    def next_entry(self, depth: int, iterator: object, count: int) -> Optional[Pack]:
        """The next values for `count` loop names, None at the end."""
        if not isinstance(iterator, operators.Generator):
            found = next(iterator, None)  # type: ignore[call-overload]
            return None if found is None else operators.spread(found, count)
        result = self.call(depth, iterator.function, iterator.state, iterator.control)
        values = result if type(result) is tuple else (result,)
        if not values or values[0] is None:
            return None
        iterator.control = values[0]
        return operators.fit(values, count)

    def concatenate(self, x: object, y: object) -> bytes:
        """`x .. y` for strings, integers and addresses."""
        for value in (x, y):
            if type(value) is not int and not isinstance(value, (bytes, Address)):
                raise Fault("type", f"cannot join {describe(x)} and {describe(y)}")
        text = tostring(x, self.host) + tostring(y, self.host)
        return self.account.built(text) if len(text) > 64 else text

    def add_stats(self, stats: object, value: object) -> Stats:
        """`stats <<< value`; nil is a new one."""
        if stats is None:
            self.account.charge(STATS_BYTES)
            stats = Stats(self.keeping)
        elif not isinstance(stats, Stats):
            raise Fault("type", f"cannot add a sample to {describe(stats)}")
        stats.add(value)
        return stats

    def sample(self, container: object, key: object, value: object) -> None:
        """`container[key] <<< value`."""
        table = operators.as_table(container)
        old = table.read(key)
        stats = self.add_stats(old, value)
        if old is None:
            table.put(key, stats)

    def symbol(self, name: bytes) -> int:
        """The address of a kernel symbol. Raises Fault("symbol")."""
        text = name.decode("utf-8", "surrogateescape")
        address = self.host.kernel_address(text)
        if address is None:
            raise Fault(
                "symbol",
                f"no kernel symbol `{text}`",
                "names are those of /proc/kallsyms, which tells addresses to root only",
            )
        return wrap(address)

    def set_probe(self, event: bytes, filter: Optional[bytes], handler: object) -> None:
        """What a `trace` statement does."""
        self.probe(event, filter, handler, takes_event=False)

    def probe(self, event: bytes, filter: Optional[bytes], handler: object, takes_event: bool) -> None:
        """Set a probe. Raises Fault("probe") outside the main chunk, Fault("type") for a handler that is none."""
        if not self.in_main:
            raise Fault("probe", "a probe can be set in the main chunk only")
        if len(self.probes) >= MAX_PROBES:
            raise Fault("probe", f"more than {MAX_PROBES} probes", "one probe can have a glob: sched:*")
        number = self.function_number(handler)
        if number is None or not isinstance(handler, FunctionType):
            raise Fault("type", f"a handler must be a function of the script, this is {describe(handler)}")
        place = next(self.frames_above(), None)
        span = place.span if place is not None else Span(1, 1, 1, 1)
        function = self.program.functions[number]
        takes_event = function.parameters > 0 or (takes_event and function.variadic)
        texts = event.decode("utf-8", "surrogateescape"), filter and filter.decode("utf-8", "surrogateescape")
        self.probes.append(Probe(texts[0], texts[1] or None, len(self.handlers), number, span, takes_event))
        self.handlers.append(handler)

    def now_ns(self) -> int:
        """Monotonic time: the event's in a handler, else the clock's."""
        event = self.event
        nsecs = self.idle.nsecs if event is None else getattr(event, "nsecs")  # noqa: B009
        return nsecs if isinstance(nsecs, int) else self.idle.nsecs

    # -- limits -------------------------------------------------------------------------------

    def arm(self, rounds: int) -> None:
        """Renew what one run may use."""
        self.names["rounds"] = repeat(None, rounds)
        self.names["calls"] = repeat(None, max(rounds, MIN_CALLS))

    def interrupt(self) -> None:
        """End the main chunk, tick or trace_end that runs by an Exit soon. May be called by a signal handler."""
        if self.unhurried:
            self.interrupted = True
            self.names["rounds"] = self.names["calls"] = iter(())

    def out_of_rounds(self) -> BaseException:
        """What to raise when no loop rounds are left."""
        return Exit() if self.interrupted else Fault("loop", "loop execute count exceed max limit", self.hint())

    def out_of_calls(self) -> BaseException:
        """What to raise when no calls are left."""
        return Exit() if self.interrupted else Fault("calls", "call count exceed max limit", self.hint())

    def hint(self) -> str:
        """How to have more rounds and calls."""
        return f"raise it with {'--max-main-rounds' if self.unhurried else '--max-rounds'}"

    # -- running ------------------------------------------------------------------------------

    def run_main(self, *arguments: object) -> None:
        """Run the main chunk. Raises Fault and Exit."""
        maker = self.names["make0"]
        assert isinstance(maker, FunctionType)
        self.in_main = True
        try:
            self.run_at_leisure(maker(), arguments)
        finally:
            self.in_main = False

    def run_handler(self, handler: int, name: str) -> None:
        """Run a handler outside of events: `name` (`tick-1s`, `trace_end`) is its probename. Raises Fault and Exit."""
        self.idle.probename = name.encode("utf-8", "surrogateescape")
        self.run_at_leisure(self.handlers[handler], ())

    def run_at_leisure(self, function: FunctionType, arguments: Pack) -> None:
        """Run a function with the limits of the main chunk and no event."""
        self.event = None
        self.names["E"] = self.idle
        self.interrupted = False
        self.arm(self.limits.main_rounds)
        self.unhurried = True
        try:
            self.settle(1, function(1, *arguments))
        except (Fault, RecursionError, MemoryError) as error:
            raise self.located(error) from None
        finally:
            self.unhurried = False

    def bind(self, points: Sequence[Point], probes: Sequence[Probe]) -> List[Bound]:
        """What `deliver` needs of a source's points; their handlers are given as indexes of `probes`."""
        bound = []
        for event, wanted in points:
            calls: List[Tuple[Callable[..., object], Tuple[object, ...], bool]] = []
            for index in wanted:
                if not isinstance(index, int):
                    calls.append((index, (event,), False))
                    continue
                probe = probes[index]
                arguments = (EventValue(event),) if probe.takes_event else ()
                code = self.program.functions[probe.function].code
                calls.append((self.handlers[probe.handler], arguments, any(i.op in COSTLY for i in code)))
            only = wanted[0] if len(wanted) == 1 else None
            many = only.many if isinstance(only, Bulk) else None
            self.bulk = self.bulk or many is not None
            bound.append(Bound(event, tuple(calls), many))
        return bound

    def deliver(self, records: Sequence[Tuple[object, ...]], bound: Sequence[Bound]) -> None:
        """Run the handlers of events, in the order given. `record[1]` is the number of the event's point.

        Raises Fault and Exit; then the rest is not delivered.
        """
        if not self.bulk:
            self._deliver(records, bound)
            return
        for point, group in groupby(records, POINT):
            many = bound[point].many
            if many is not None:
                many(list(group))
            else:
                self._deliver(group, bound)

    def _deliver(self, records: Iterable[Tuple[object, ...]], bound: Sequence[Bound]) -> None:
        names, rounds = self.names, self.limits.handler_rounds
        most_calls = max(rounds, MIN_CALLS)
        current = None
        try:
            for record in records:
                event, calls, _ = bound[record[1]]  # type: ignore[call-overload]
                event.record = record
                if event is not current:
                    names["E"] = self.event = current = event
                for handler, arguments, costly in calls:
                    if costly:
                        names["rounds"] = repeat(None, rounds)
                        names["calls"] = repeat(None, most_calls)
                    result = handler(1, *arguments)
                    if type(result) is tuple and result:
                        self.settle(1, result)
        except (Fault, RecursionError, MemoryError) as error:
            raise self.located(error) from None
        finally:
            self.event = None
            names["E"] = self.idle

    # -- places and memory --------------------------------------------------------------------

    def located(self, error: BaseException) -> Fault:
        """The fault with its frames; what Python itself ran out of is told as the limit it stands for."""
        if isinstance(error, RecursionError):
            fault = operators.too_deep()
        elif isinstance(error, MemoryError):
            fault = Fault("memory", "out of memory: the system has no more")
        else:
            assert isinstance(error, Fault)
            fault = error
        frames: List[Frame] = []
        if fault.frames:  # one that happened in the kernel knows its place
            return fault
        traceback = error.__traceback__
        while traceback is not None:
            frames.extend(self.frame(traceback.tb_frame, traceback.tb_lineno))
            traceback = traceback.tb_next
        fault.frames = tuple(reversed(frames))
        return fault

    def frame(self, frame: FrameType, line: int) -> Iterator[Frame]:
        """The place a frame of Python stands for, if it runs translated code."""
        known = self.codes.get(id(frame.f_code))
        if known is not None:
            function = self.program.functions[known[0]]
            yield Frame(function.name, function.spans[known[1].places[line - 1]])

    def frames_above(self) -> Iterator[Frame]:
        """The calls of the script that are in progress, innermost first."""
        frame: Optional[FrameType] = _getframe(1)
        while frame is not None:
            yield from self.frame(frame, frame.f_lineno)
            frame = frame.f_back

    def roots(self) -> Iterator[object]:
        """Everything the script holds directly: globals, handlers, registers of the calls in progress."""
        for name, value in self.names.items():
            if name[0] == "g":
                yield value
        yield from self.handlers
        frame: Optional[FrameType] = _getframe(1)
        while frame is not None:
            if id(frame.f_code) in self.codes:
                yield from frame.f_locals.values()
            frame = frame.f_back


POINT = itemgetter(1)
COSTLY = CALLS | {"JUMP", "JUMPIF", "JUMPIFNOT", "FORLOOP", "ITERNEXT"}
"""Opcodes by which a handler uses up rounds or calls."""

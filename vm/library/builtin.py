"""The table of builtins: a row and its implementation are one thing, joined by a decorator.

    @builtin("string.upper", "s: string", "string")
    def string_upper(machine, depth, s):
        '''s with the letters a-z as A-Z'''

The docstring's first paragraph is the line of help. The parameters are text that documentation shows and argument checks are made from: `name: type`,
`name?: type` for one that may be left out or nil, `...: any` for the rest. A type is one of TYPES, or
several with `|` between. `builtin` checks the arguments for its implementation; `made` is for those
that are called so often that they check for themselves: it decorates a function from a machine to the
builtin.
"""

from __future__ import annotations

from types import FunctionType
from typing import TYPE_CHECKING, Callable, Optional, Protocol, TypeVar

from vm.aggregate import Keeping, Stats
from vm.event import Event
from vm.fault import Fault
from vm.host import Host
from vm.limits import Limits
from vm.memory import Account
from vm.named_tuple import NamedTuple
from vm.values import Address, Cdata, Stack, Table, type_name

if TYPE_CHECKING:
    from vm.c_types import Types

Function = Callable[..., object]
"""A function as the machine calls it: `f(depth, *arguments)`; a tuple is zero or several results."""

Wrapped = TypeVar("Wrapped", bound=Callable[..., object])

Make = TypeVar("Make", bound="Callable[[Machine], object]")

VM: tuple[str, ...] = ("vm",)
KERNEL: tuple[str, ...] = ("vm", "kernel")
"""The tiers of a builtin: every one is there in the VM; some also in handlers that run in the kernel."""

NOTHING: tuple[object, ...] = ()
"""What a builtin returns that has no result."""


class Sink(Protocol):
    """Where output goes."""

    def write(self, data: bytes) -> None:
        """Take bytes."""

    def flush(self) -> None:
        """Let out what was taken."""


class Machine(Protocol):
    """What the builtins need of the machine they run on."""

    output: Sink
    host: Host
    limits: Limits
    account: Account
    keeping: Keeping
    """What stats keep: see `vm.aggregate.keeping`."""
    event: Optional[Event]
    """The event whose handler runs, None outside of one."""
    unsafe: bool
    """--unsafe was given."""
    types: Optional[Types]
    """Where C types are looked up (the kernel's BTF); the ffi library puts the script's in front of it."""

    def call(self, depth: int, function: object, *arguments: object) -> object:
        """Call a function of the script. Its result: a value, or a tuple of none or several."""

    def now_ns(self) -> int:
        """Monotonic time: the event's in a handler, else the clock's."""

    def probe(self, event: bytes, filter: Optional[bytes], handler: object, takes_event: bool) -> None:
        """Set a probe. Raises Fault probe outside the main chunk."""


class Builtin(NamedTuple):
    """One row of the table."""

    name: str
    parameters: str
    result: str
    help: str
    faults: tuple[str, ...]
    """Kinds of `vm.fault.KINDS`; `argument` goes without saying."""
    tiers: tuple[str, ...]
    make: Callable[[Machine], object]
    """Makes the builtin for a machine: a function, but for `ffi.C`."""

    @property
    def signature(self) -> str:
        """`string.sub(s: string, first: integer, last?: integer)`."""
        return f"{self.name}({self.parameters})"


TABLE: dict[str, Builtin] = {}
"""The rows of the families that were imported (see `vm.library.rows`)."""

TYPES: dict[str, tuple[type, ...]] = {
    "integer": (int, Address),
    "string": (bytes,),
    "boolean": (bool,),
    "table": (Table,),
    "function": (FunctionType,),
    "stack": (Stack,),
    "stats": (Stats,),
    "cdata": (Cdata,),
    "nil": (type(None),),
}


class Parameter(NamedTuple):
    """A parameter: the types it takes (None: any) and whether it may be left out."""

    name: str
    types: Optional[tuple[type, ...]]
    expected: str
    optional: bool


def parse_parameters(text: str) -> tuple[Parameter, ...]:
    """The parameters of a row, without a `...`."""
    found = []
    for part in text.split(", ") if text else ():
        name, _, expected = part.partition(": ")
        if name != "...":
            types = None if expected == "any" else tuple(t for kind in expected.split("|") for t in TYPES[kind])
            found.append(Parameter(name.rstrip("?"), types, " or ".join(expected.split("|")), name.endswith("?")))
    return tuple(found)


def fit(name: str, parameters: tuple[Parameter, ...], arguments: tuple[object, ...]) -> tuple[object, ...]:
    """The arguments with missing ones as nil and without those too many. Raises Fault argument."""
    fitted = (arguments + (None,) * len(parameters))[: len(parameters)]
    for place, (parameter, value) in enumerate(zip(parameters, fitted), 1):
        if parameter.types is None or type(value) in parameter.types or (parameter.optional and value is None):
            continue
        raise wrong_argument(name, place, value, parameter.expected)
    return fitted


def wrong_argument(name: str, place: int, value: object, expected: str) -> Fault:
    """The fault of a builtin that was given something of a wrong type as its argument number `place`."""
    return Fault("argument", f"{name}: argument {place} is {type_name(value)}, expected {expected}")


def builtin(
    name: str, parameters: str, result: str, faults: tuple[str, ...] = (), tiers: tuple[str, ...] = VM
) -> Callable[[Wrapped], Wrapped]:
    """Make a row of a function `(machine, depth, *arguments)` whose arguments are checked before it is called."""

    def join(implementation: Wrapped) -> Wrapped:
        def make(machine: Machine) -> Function:
            return checked(machine, name, parameters, implementation)

        add(Builtin(name, parameters, result, help_in(implementation), faults, tiers, make))
        return implementation

    return join


def made(
    name: str, parameters: str, result: str, faults: tuple[str, ...] = (), tiers: tuple[str, ...] = VM
) -> Callable[[Make], Make]:
    """Make a row of a function that, given a machine, makes the builtin; that one checks its arguments itself."""

    def join(make: Make) -> Make:
        add(Builtin(name, parameters, result, help_in(make), faults, tiers, make))
        return make

    return join


def help_in(implementation: Function) -> str:
    """The line of help: the first paragraph of the docstring (none is left under python -OO)."""
    return " ".join((implementation.__doc__ or "").partition("\n\n")[0].split())


def event_pid(machine: Machine) -> Optional[int]:
    """The process of the event whose handler runs, None outside of one."""
    pid = getattr(machine.event, "pid", None)
    return pid if isinstance(pid, int) else None


def add(row: Builtin) -> None:
    """Put a row into the table."""
    if row.name in TABLE:
        raise ValueError(f"two builtins are named {row.name}")
    TABLE[row.name] = row


def checked(machine: Machine, name: str, parameters: str, implementation: Function) -> Function:
    """The builtin as scripts call it. Combinations of argument types that were found right are not checked again."""
    known: set[tuple[type, ...]] = set()
    wanted: list[Parameter] = []

    def call(depth: int, *arguments: object) -> object:
        signature = tuple(map(type, arguments))
        if signature not in known:
            if not (known or wanted):
                wanted.extend(parse_parameters(parameters))
            arguments = fit(name, tuple(wanted), arguments)
            if len(signature) == len(arguments):
                known.add(signature)
        return implementation(machine, depth, *arguments)

    return call

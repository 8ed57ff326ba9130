"""Events of kernel functions: `probe:vfs_read`, `probe:vfs_read+0x10`, `probe:tcp_*%return`, `ftrace:function /ip==mutex*/`.

Without fetch arguments a call has its arguments by the names and types of the kernel's BTF, or else, as words, by
the calling convention.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import AbstractSet, Callable, Dict, List, Optional, Sequence, Tuple

from ktap.btf import Btf, Prototype
from ktap.calls import CALL, CALL_RETURN, Called, remembered, remembers
from ktap.demand import EITHER, KERNEL, STRING, Demand, Expression, Number, Read
from ktap.event_format import POINTER, RETURN_ADDRESS, RETVAL
from ktap.fetch import (
    MOST_STRING_BYTES,
    Argument,
    Context,
    FetchError,
    Shape,
    call_argument,
    call_origin,
    instruction,
    parse_fetch,
    result,
)
from ktap.fetched import FUNCTION, Record, address_argument, record_of
from ktap.functions import KernelFunctions, near_tracepoints
from ktap.members import Unreachable, follow
from ktap.plan import reads_record
from ktap.registers import MACHINES
from vm.c_types import Integer, Named, Pointer, Scope, Type, Void, show
from vm.fault import Fault
from vm.named_tuple import NamedTuple
from vm.values import wrap

PROBE, FTRACE = "probe", "ftrace"
CALL_EVENTS = (PROBE, FTRACE)
EVENT = re.compile(
    r"(?P<name>[\w.$*?\[\]!-]+?)(\+(?P<offset>0[xX][0-9a-fA-F]+|\d+))?(?P<returns>%return)?(\s+(?P<fetch>.*))?"
)
IP_FILTER = re.compile(r"ip\s*(?:==|~)\s*[\"']?(?P<pattern>[\w.*?\[\]-]+)[\"']?")
GROUP = "kprobes"
REGISTER_ARGUMENTS = 6
FORM = "as in probe:vfs_read, probe:vfs_read+0x10, probe:vfs_*%return"


class Call(NamedTuple):
    """A function and what is captured of it."""

    context: str
    label: str
    name: str
    record: Record
    called: Called


class NoCall(Exception):
    """What a script asks for cannot be traced; `status` is the exit status."""

    def __init__(self, message: str, hint: Optional[str] = None, status: int = 1) -> None:
        super().__init__(message)
        self.hint = hint
        self.status = status


class Where(NamedTuple):
    """Where functions are looked up."""

    functions: Callable[[], KernelFunctions]
    types: Callable[[], Optional[Btf]]
    machine: str
    most_probes: int
    unsafe: bool = False
    """What might hang the machine may be probed, too."""


class Written(NamedTuple):
    """An event taken apart."""

    text: str
    name: str
    offset: int
    returns: bool
    fetch: str
    kind: str = PROBE

    @property
    def is_glob(self) -> bool:
        """Whether it means several functions."""
        return any(sign in self.name for sign in "*?[")


def take_apart(text: str, condition: Optional[str]) -> Written:
    """An event as written, and its filter. Raises NoCall."""
    kind, _, rest = text.partition(":")
    if kind == FTRACE:
        pattern = IP_FILTER.fullmatch((condition or "").strip())
        if rest.strip() != "function" or pattern is None:
            raise NoCall(
                f"`{text}` needs a filter that says which functions", "as in trace ftrace:function /ip==mutex*/ { … }"
            )
        return Written(text, pattern["pattern"], 0, False, "", kind)
    found = EVENT.fullmatch(rest.strip())
    if found is None:
        target = rest.split(None, 1)[0] if "/" in rest else ""
        raise NoCall(f"`{text}` names no function", f"as in probe:{target}:main" if target else FORM)
    offset = int(found["offset"] or "0", 0)
    written = Written(text, found["name"], offset, found["returns"] is not None, found["fetch"] or "")
    if offset and (written.returns or written.is_glob):
        raise NoCall(f"`{text}`: only one function's entry has an offset", FORM)
    return written


def find_calls(text: str, condition: Optional[str], wanted: Demand, where: Where) -> List[Call]:
    """The calls that an event means. Raises NoCall, and FetchError for what is wrong with the fetch arguments."""
    written = take_apart(text, condition)
    machine = MACHINES.get(where.machine)
    if machine is None:
        raise NoCall(f"the registers of {where.machine} are not known, so functions cannot be probed", status=3)
    if not where.functions().can_be_probed():
        raise _no_probes(written)
    if written.offset % machine.instruction_bytes:
        hint = f"instructions of this processor are at multiples of {machine.instruction_bytes}"
        raise NoCall(f"`{text}`: no instruction starts there", hint)
    places = _places(written, where)
    if len(places) > where.most_probes:
        raise NoCall(
            f"`{text}` matches {len(places)} functions, more than {where.most_probes}",
            f"--max-probes {len(places)} probes them all",
        )
    types = where.types()  # they also say which functions a typed program can be given
    reads = bool(condition) or reads_record(wanted)
    prototypes = (
        types.functions([name for name, _ in places]) if types is not None and (reads or not written.is_glob) else {}
    )
    context = Context(machine, EITHER, written.returns, written.returns, symbol=where.functions().symbol)
    maker = _Maker(written, context, types, reads and not written.fetch, wanted.variables, condition or "")
    uses = Counter(name for name, _ in places)
    return [maker.call(name, address, prototypes.get(name), uses[name] == 1) for name, address in places]


def _no_probes(written: Written) -> NoCall:
    near = near_tracepoints(written.name)
    lacks = "this kernel cannot probe its functions: it was built without kprobes (CONFIG_KPROBE_EVENTS)"
    hint = f"tracepoints that come near: {', '.join(near)}" if near else "ktap list shows the tracepoints"
    return NoCall(f"`{written.text}`: {lacks}", hint, 3)


def _places(written: Written, where: Where) -> List[Tuple[str, int]]:
    """Names and addresses of the functions that an event means."""
    functions = where.functions()
    if written.is_glob or written.kind == FTRACE:
        matched = functions.matching(written.name)
        if not matched:
            raise NoCall(f"no function of the kernel that can be probed matches `{written.name}`")
        return [(name, address) for name, addresses in matched.items() for address in addresses]
    addresses = functions.addresses([written.name]).get(written.name)
    if not addresses:
        near = functions.near(written.name)
        hint = f"did you mean {' or '.join(f'`probe:{name}`' for name in near)}?" if near else None
        if near and near[0].startswith(written.name + "."):
            hint = f"the compiler has made {' and '.join(f'`probe:{name}`' for name in near)} of it"
        raise NoCall(f"the kernel has no function `{written.name}` (or it is inlined wherever it is called)", hint)
    why = functions.why_refused(written.name, where.unsafe)
    if why is None and functions.is_forbidden(addresses[0]):
        why = "it is code that the kernel runs where it can serve none"
    if why is not None:
        hint = None if where.unsafe or functions.why_refused(written.name, True) else "--unsafe probes it all the same"
        raise NoCall(f"`{written.name}` must not be probed: {why}", hint)
    if not addresses[0]:
        raise NoCall("the addresses of the kernel's functions are hidden", "run as root; see kernel.kptr_restrict", 3)
    if written.offset and len(addresses) > 1:
        message = (
            f"{len(addresses)} functions are called `{written.name}`: which one's instruction is meant cannot be said"
        )
        raise NoCall(message, f"`probe:{written.name}` is the entry of each")
    return [(written.name, address) for address in addresses]


class _Maker:
    """Makes what is captured of each function; of functions without arguments that anybody reads it is the same."""

    def __init__(
        self,
        written: Written,
        context: Context,
        types: Optional[Btf],
        reads: bool,
        asked: AbstractSet[str],
        condition: str,
    ) -> None:
        self.written = written
        self.types = types
        self.reads = reads
        self.asked = asked
        """The event variables that handlers read."""
        self.condition = condition
        self.context = context if types is None else context._replace(name_of=self._name_of)
        self.shared: Dict[Tuple[Argument, ...], Record] = {}

    def call(self, name: str, address: int, prototype: Optional[Prototype], alone: bool) -> Call:
        """A function and what is captured; `alone` where no other has its name (BTF knows one of that name at most)."""
        written = self.written
        shown = name if not written.offset else f"{name}+{written.offset:#x}"
        label = f"{written.kind}:{shown}{'%return' if written.returns else ''}"
        if written.fetch:
            label += f" {written.fetch}"
        if not alone:
            label += f" ({address:#x})"
            prototype = None
        words = _words(prototype, self.types)
        one = alone and not written.is_glob and not written.offset and written.kind == PROBE
        place: Expression = Number(wrap(address + written.offset)) if written.offset else FUNCTION
        record = self._record(prototype if words is not None else None, place)
        typed = prototype is not None and words is not None and (one or remembered(record.recipe))
        type_id = prototype.id if prototype is not None and typed else None
        begins = not written.offset and not written.returns
        hides = begins and self.context.machine.link is not None
        called = Called(name, address, written.offset, written.returns, type_id, words or 0, not one, hides)
        named = record._replace(format=record.format._replace(name=shown if written.kind == PROBE else "function"))
        return Call(CALL_RETURN if written.returns else CALL, label, named.format.name, named, called)

    def _record(self, prototype: Optional[Prototype], place: Expression) -> Record:
        written = self.written
        if written.kind == FTRACE:
            arguments: Sequence[Argument] = [Argument("parent_ip", call_origin(self.context), Shape("y"))]
            first = Argument("ip", place, Shape("y"))
            record = record_of("", arguments, first, (), True)
            text = record.format.print_format.replace("(0x%lx)", "(%pS)", 1)
            return record._replace(format=record.format._replace(print_format=text))
        if written.fetch or written.returns:
            arguments = parse_fetch(written.fetch, self._context_of(prototype))
            if not written.returns:
                return record_of("", arguments, address_argument(place, False), (), True)
            if not written.fetch and prototype is not None and self._asks_for_arguments(prototype):
                arguments = self._typed_arguments(prototype)
            hidden = self._result(prototype)
            if "argstr" in self.asked and not any(remembers(argument.what) for argument in arguments):
                # only the registers tell where it returns to, and where arguments are known these are not
                hidden = [Argument(RETURN_ADDRESS, instruction(self.context), Shape("x")), *hidden]
            record = record_of("", arguments, address_argument(place, True), hidden, True)
            return _with_types(record, prototype, not written.fetch)
        typed = prototype is not None and not written.offset
        arguments = self._typed_arguments(prototype) if prototype is not None and typed else self._words()
        key = tuple(arguments)
        if key not in self.shared:
            self.shared[key] = record_of("", arguments, address_argument(place, False), (), typed)
        return _with_types(self.shared[key], prototype) if typed else self.shared[key]

    def _context_of(self, prototype: Optional[Prototype]) -> Context:
        """With the names of the function's parameters."""
        written = self.written
        if prototype is None or self.types is None or written.offset:
            return self.context
        context, scope = self.context._replace(result=_shape(prototype.result, self.types)), Scope(self.types)
        numbers = {one.name or f"arg{n}": n for n, one in enumerate(prototype.arguments, 1)}

        def parameter(name: str, members: Sequence[str]) -> Tuple[Expression, Shape]:
            number = numbers[name]
            type = prototype.arguments[number - 1].type
            if not members:
                return call_argument(context, number), _shape(type, self.types)
            return _member(scope, ".".join([name, *members]), call_argument(context, number), type, members)

        return context._replace(parameters=tuple(numbers), parameter=parameter)

    def _name_of(self, what: Expression, kind: str) -> Read:
        path = NAMES_OF_FILES[kind]
        found = follow(Scope(self.types), ".".join(path), what, Pointer(Named(kind)), path)
        return Read(KERNEL, STRING, found.read, MOST_STRING_BYTES)

    def _result(self, prototype: Optional[Prototype]) -> Sequence[Argument]:
        """What a function returns; nothing where its type says so."""
        if prototype is None:
            return [Argument(RETVAL, result(self.context), Shape("s"))]
        kind = _resolved(prototype.result, self.types)
        if isinstance(kind, Void):
            return []
        return [Argument(RETVAL, result(self.context), _shape(prototype.result, self.types))]

    def _asks_for_arguments(self, prototype: Prototype) -> bool:
        """Whether handlers of a return read arguments of the call, by name or by number, or its filter does."""
        names = [one.name or f"arg{n}" for n, one in enumerate(prototype.arguments, 1)]
        asked = {name.split(".")[1] if name.startswith("args.") else name for name in self.asked}
        numbers = {f"arg{n}" for n in range(1, len(names) + 1)}
        return not asked.isdisjoint({*names, *numbers}) or any(
            re.search(rf"\b{name}\b", self.condition) for name in names
        )

    def _words(self) -> List[Argument]:
        if not self.reads:
            return []
        return [
            Argument(f"arg{n}", call_argument(self.context, n), Shape("s")) for n in range(1, REGISTER_ARGUMENTS + 1)
        ]

    def _typed_arguments(self, prototype: Prototype) -> List[Argument]:
        return [
            Argument(one.name or f"arg{n}", call_argument(self.context, n), _shape(one.type, self.types))
            for n, one in enumerate(prototype.arguments, 1)
        ]


NAMES_OF_FILES = {"struct dentry": ("d_name", "name"), "struct file": ("f_path", "dentry", "d_name", "name")}
"""Where a structure has the name of its file."""


def _member(
    scope: Scope, path: str, address: Expression, type: Type, members: Sequence[str]
) -> Tuple[Expression, Shape]:
    """A member behind a parameter as a fetch argument. Raises FetchError."""
    from compiler.spell import suggest

    try:
        found = follow(scope, path, address, type, members)
    except Unreachable as error:
        near = suggest(error.name, error.known)
        raise FetchError(str(error), 0, f"did you mean `{near}`?" if near else None) from None
    if found.text:
        return found.read._replace(kind=STRING), Shape("S", 1)
    size = found.read.most_bytes
    if found.bits:
        return found.read, Shape("b", 1 << (size - 1).bit_length(), found.bits, found.shift)
    return found.read, Shape("s" if found.signed else "u", size)


def _shape(type: Type, types: Optional[Btf]) -> Shape:
    """How a parameter is read of its register, whose upper bits may be anything."""
    kind = _resolved(type, types)
    if isinstance(kind, Integer):
        return Shape("s" if kind.signed else "u", kind.size_bytes)
    return Shape("x")


def _resolved(type: Type, types: Optional[Btf]) -> Optional[Type]:
    try:
        return Scope(types).resolve(type) if types is not None else None
    except Fault:
        return None


def _words(prototype: Optional[Prototype], types: Optional[Btf]) -> Optional[int]:
    """How many words the arguments of a function take; None where it is not known, or some take no or several words."""
    if prototype is None:
        return None
    kinds = [_resolved(one.type, types) for one in prototype.arguments]
    whole = all(isinstance(kind, (Integer, Pointer)) and getattr(kind, "size_bytes", 8) <= 8 for kind in kinds)
    return len(kinds) if whole else None


def _with_types(record: Record, prototype: Optional[Prototype], named: bool = True) -> Record:
    """The record with the types that members are found by; `named` where its fields are the function's parameters."""
    if prototype is None:
        return record
    known: Dict[str, Type] = {one.name: one.type for one in prototype.arguments} if named else {}
    known[RETVAL] = prototype.result
    fields = []
    for field in record.format.fields:
        type = known.get(field.name)
        if isinstance(type, Pointer):
            field = field._replace(type=show(type), kind=POINTER)
        fields.append(field)
    return record._replace(format=record.format._replace(fields=tuple(fields)))

"""Hanging programs on functions of the kernel: three ways, each held by a file descriptor of this process.

- a *typed* program (fentry, fexit) is loaded for one function that BTF knows, and attached as a raw tracepoint is;
- a *multi* link hangs one program on any number of functions that the function tracer can trace (Linux 5.18);
- a perf event of the kprobe PMU is one instruction, or the return of one function.

Sources: linux/bpf.h (BPF_LINK_CREATE, struct bpf_link_info), linux/perf_event.h, kernel/trace/trace_event_perf.c.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Dict, List, Optional, Sequence, Tuple

from ktap import kernel
from ktap.calls import Called
from vm.named_tuple import NamedTuple

if TYPE_CHECKING:
    from ktap.capture import Case
    from ktap.plan import Captured

TRACING = 26
"""Kind of a typed program."""
FENTRY, FEXIT, KPROBE_MULTI = 24, 25, 42
"""What a program is attached as."""
RETURNS = 1
"""Flag of a multi link; bit of a perf event's config."""
DEVICE = "/sys/bus/event_source/devices/kprobe/type"


NOT_THERE = "the kernel takes no probe on an instruction that it changes itself, or that works only where it stands"
TESTED = "bpf_fentry_test1"
"""A function that the kernel has for its own tests."""
NAMES = {FENTRY: "fentry", FEXIT: "fexit", KPROBE_MULTI: "kprobe multi", 0: "kprobe"}
"""What the ways are called."""
PERF_EVENT_LINK = 41
REFUSED = (errno.ENOENT, errno.EINVAL, errno.ESRCH, errno.EILSEQ, errno.EEXIST, errno.EOPNOTSUPP, errno.EBUSY)
"""What the kernel says of functions that it does not trace; anything else is about all of them."""


LINK_INFO_BYTES, LEAST_INFO_BYTES = 80, 56
"""Room for a struct bpf_link_info, and its size since it has what a link of functions misses."""
PERF_EVENT_KIND, MULTI_KIND = 7, 8
MISSED = {PERF_EVENT_KIND: 48, MULTI_KIND: 32}
"""Where it has that, by the kind of link."""


class Place(NamedTuple):
    """A function, and the cookie that the program is given."""

    called: Called
    cookie: int


class Attached(NamedTuple):
    """What holds the probes, the links among it that count what they miss, by label, and what the kernel did not take,
    with what it said."""

    fds: List[int]
    counting: List[Tuple[str, int]]
    refused: List[Tuple[Place, OSError]]


def groups(events: Sequence[Tuple[int, Captured]]) -> List[List[Tuple[int, Captured]]]:
    """Functions of the kernel, put together where one program serves them all."""
    found: Dict[Tuple[str, int, bool], List[Tuple[int, Captured]]] = {}
    cases: Dict[int, int] = {}
    known: List[Case] = []
    for number, event in events:
        called = event.wanted.called
        assert called is not None
        identity = cases.get(id(event.case))
        if identity is None:
            if event.case not in known:
                known.append(event.case)
            identity = cases[id(event.case)] = known.index(event.case)
        found.setdefault((event.wanted.context, identity, called.offset != 0), []).append((number, event))
    return sorted(found.values(), key=lambda group: wants_link(group[0][1]))


def wants_link(event: Captured) -> bool:
    """Whether an event wants to know from a register where the function will return to. It is attached after the returns
    of that function, since of probes at one place the last one set runs first, and one of a return changes the register.
    """
    at_entry = event.wanted.called is not None and event.wanted.called.hides_caller
    return at_entry and (event.wanted.demand.kernel_stack > 0 or any(body.enters for body in event.case.bodies))


def wants_multi(places: Sequence[Place]) -> bool:
    """Whether functions are to be attached by a multi link: one alone need not be what the function tracer can trace."""
    return (
        has_multi()
        and (len(places) > 1 or probe_type() is None or any(place.called.many for place in places))
        and not any(place.called.offset for place in places)
    )


def attach(program: int, places: Sequence[Place], returns: bool) -> Attached:
    """Attach a program, loaded for what `wants_multi` says, to functions. Raises OSError where none can be."""
    found = Attached([], [], [])
    try:
        (_attach_multi if wants_multi(places) else _attach_each)(program, places, returns, found)
        if not found.fds and found.refused:
            raise found.refused[0][1]
    except OSError:
        for fd in found.fds:
            os.close(fd)
        raise
    return found


def _attach_multi(program: int, places: Sequence[Place], returns: bool, found: Attached) -> None:
    """One link; where the kernel refuses it, one for each half, until the function is found that is the reason."""
    addresses = [place.called.address for place in places]
    try:
        link = attach_multi(program, addresses, [place.cookie for place in places], returns)
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        if len(places) == 1:
            found.refused.append((places[0], error))
            return
        half = len(places) // 2
        _attach_multi(program, places[:half], returns, found)
        _attach_multi(program, places[half:], returns, found)
        return
    found.fds.append(link)
    found.counting.append((_label(places), link))


def _attach_each(program: int, places: Sequence[Place], returns: bool, found: Attached) -> None:
    for place in places:
        try:
            event = open_probe(place.called, returns)
        except OSError as error:
            if error.errno not in REFUSED:
                raise
            found.refused.append((place, error))
            continue
        found.fds.append(event)
        attribute = struct.pack("=IIIIQ", program, event, PERF_EVENT_LINK, 0, place.cookie)
        link = kernel.create_link(attribute, f"probe in {place.called.symbol}")
        found.fds.append(link)
        found.counting.append((_label([place]), link))


def _label(places: Sequence[Place]) -> str:
    """The functions of a link, in a few words."""
    called = places[0].called
    name = (
        f"probe:{called.symbol}{f'+{called.offset:#x}' if called.offset else ''}{'%return' if called.returns else ''}"
    )
    return name if len(places) == 1 else f"{name} and {len(places) - 1} more"


@cache
def probe_type() -> Optional[int]:
    """The type of the kprobe PMU's perf events, None where the kernel has none."""
    with suppress(OSError), open(DEVICE) as file:
        return int(file.read())
    return None


@cache
def has_multi() -> bool:
    """Whether there are multi links: kernels without look for no function, others do not find it."""
    try:
        program = kernel.load(kernel.KPROBE, kernel.RETURN_ZERO, attach_type=KPROBE_MULTI)
    except OSError:
        return False
    try:
        os.close(attach_multi_symbols(program, [b"ktap: no such function"]))
    except OSError as error:
        return error.errno == errno.ESRCH
    finally:
        os.close(program)
    return True


@cache
def has_typed() -> bool:
    """Whether typed programs can be attached, not only loaded: the function tracer of some kernels (arm64 before Linux
    6.4) calls none for one function alone."""
    from ktap.btf import kernel_types

    types = kernel_types()
    known = types.functions([TESTED]) if types is not None else {}
    try:
        program = kernel.load(TRACING, kernel.RETURN_ZERO, attach_type=FENTRY, function=known[TESTED].id)
    except (OSError, KeyError):
        return False
    try:
        os.close(attach_typed(program, TESTED))
    except OSError:
        return False
    finally:
        os.close(program)
    return True


def attach_typed(program: int, what: str) -> int:
    """Attach a typed program to the function it was loaded for. Raises OSError."""
    return kernel.bpf_call(kernel.RAW_TRACEPOINT_OPEN, struct.pack("=QII", 0, program, 0), what)[0]


def attach_multi(program: int, addresses: Sequence[int], cookies: Sequence[int], returns: bool) -> int:
    """Attach a program to functions by address; each has a cookie, which the program can ask for. Raises OSError."""
    count = len(addresses)
    places, numbers = (ctypes.c_uint64 * count)(*addresses), (ctypes.c_uint64 * count)(*cookies)
    flags = RETURNS if returns else 0
    addresses_at, cookies_at = ctypes.addressof(places), ctypes.addressof(numbers)
    attribute = struct.pack("=IIIIIIQQQ", program, 0, KPROBE_MULTI, 0, flags, count, 0, addresses_at, cookies_at)
    return kernel.create_link(attribute, f"{count} functions")


def attach_multi_symbols(program: int, names: Sequence[bytes]) -> int:
    """The same by name and without cookies. Raises OSError."""
    texts = (ctypes.c_char_p * len(names))(*names)
    place = ctypes.addressof(texts)
    attribute = struct.pack("=IIIIIIQQQ", program, 0, KPROBE_MULTI, 0, 0, len(names), place, 0, 0)
    return kernel.create_link(attribute, "functions by name")


def open_probe(called: Called, returns: bool) -> int:
    """A perf event of a function, or of an instruction within it. Raises OSError.

    It is named by its address, which is its own; of names the kernel takes only those that no other function has.
    """
    kind = probe_type()
    assert kind is not None
    config = RETURNS if returns else 0
    counter = kernel.Counter(kind, config, period=1, config2=called.address + called.offset)
    try:
        return kernel.open_perf_event(
            counter, kernel.online_cpus()[0], what=called.symbol
        )  # its program runs on all processors
    except OSError as error:
        if error.errno != errno.EILSEQ and not (error.errno == errno.EINVAL and called.offset):
            raise
        what = f"{called.symbol}+{called.offset:#x}"
        why = "no instruction starts there" if error.errno == errno.EILSEQ else NOT_THERE
        raise OSError(error.errno, why, what) from error


def misses(link: int) -> Optional[int]:
    """How often the functions of a link were called unseen: the kernel was in a probe already, or more calls were running
    than it keeps for returns. None where the kernel does not tell (before Linux 6.7).
    """
    info = ctypes.create_string_buffer(LINK_INFO_BYTES)
    attribute = struct.pack("=IIQ", link, len(info), ctypes.addressof(info))
    _, answer = kernel.bpf_call(kernel.INFO_BY_FD, attribute, "link info")
    kind, known_bytes = struct.unpack_from("=I", info.raw)[0], struct.unpack_from("=I", answer, 4)[0]
    if kind not in MISSED or known_bytes < LEAST_INFO_BYTES:
        return None
    missed: int = struct.unpack_from("=Q", info.raw, MISSED[kind])[0]
    return missed

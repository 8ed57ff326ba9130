"""Attaching programs to places in files: links of many places where the kernel has them, else a perf event each.

Both are held by file descriptors and gone with them; ktap.keeper opens and closes them. Each place has a number, its
cookie, which the program asks for. Sources: linux/bpf.h (BPF_TRACE_UPROBE_MULTI, Linux 6.6), linux/perf_event.h and
/sys/bus/event_source/devices/uprobe (Linux 4.17), links of perf events with cookies (Linux 5.15).
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from contextlib import suppress
from functools import cache
from typing import Dict, FrozenSet, List, Mapping, Sequence, Tuple, TypeVar

from ktap import kernel
from ktap.keeper import Call, Keeper
from ktap.user_functions import Spot
from vm.named_tuple import NamedTuple

LINK_CREATE = 28
PERF_EVENT_LINK, UPROBE_MULTI = 41, 48
"""Attach types."""
NAMES = {UPROBE_MULTI: "uprobe multi", 0: "uprobe"}
"""What the ways are called, by what `attach_type` says."""
MULTI_RETURN = 1
PMU = "/sys/bus/event_source/devices/uprobe"
SEMAPHORE_SHIFT = 32
REFUSED = (errno.ENOENT, errno.EINVAL, errno.ENODEV, errno.EOPNOTSUPP, errno.EEXIST, errno.EIO, kernel.ENOTSUPP)
"""What it says of one place; anything else is about all of them."""
DOUBTFUL: Mapping[str, Tuple[int, FrozenSet[int]]] = {
    "x86_64": (
        0,
        frozenset(
            (
                *(0xF0, 0x26, 0x2E, 0x36, 0x3E, 0xC4, 0xC5),
                *(0x6C, 0x6D, 0x6E, 0x6F, 0xCC, 0xE4, 0xE5, 0xE6, 0xE7, 0xEC, 0xED, 0xEE, 0xEF, 0xF1, 0xF4, 0xFA, 0xFB),
            )
        ),
    ),
    "aarch64": (3, frozenset((0x08, 0x48, 0x88, 0xC8, 0xD4))),
}
"""Instructions that the kernel may not probe, by machine: which of their bytes tells, and what it is then.

On x86-64 these are prefixes, of vectors too, and what only the kernel may do or what stops the program; on arm64 loads
and stores that are exclusive, and what stops the program. Sources: arch/x86/kernel/uprobes.c,
arch/arm64/kernel/probes/decode-insn.c.
"""


class Place(NamedTuple):
    """One place and its cookie."""

    spot: Spot
    cookie: int


class Attached(NamedTuple):
    """What holds the probes, and the places that the kernel did not take, with what it said."""

    fds: List[int]
    refused: List[Tuple[Place, OSError]]


def attach_type() -> int:
    """What a program is to be loaded for."""
    return UPROBE_MULTI if has_multi() else 0


@cache
def has_multi() -> bool:
    """Whether one link can hold many places. Asked with a path that is no file: EBADF says that it is understood."""
    program = kernel.load(kernel.KPROBE, kernel.RETURN_ZERO, attach_type=UPROBE_MULTI)
    try:
        os.close(_multi(program, b"/", (0,), (0,), (0,), False))
    except OSError as error:
        return error.errno == errno.EBADF
    finally:
        os.close(program)
    return True


def attach(keeper: Keeper, program: int, places: Sequence[Place], returns: bool) -> Attached:
    """Attach a program, loaded for `attach_type()`, to places of one file. Raises OSError where none can be."""
    found = Attached([], [])
    try:
        if has_multi():
            for part in apart(places, [place.spot for place in places]):
                _attach_multi(keeper, program, part, returns, found)
        else:
            _attach_each(keeper, program, places, returns, found)
    except OSError:
        for fd in found.fds:
            os.close(fd)
        raise
    return found


T = TypeVar("T")


def apart(places: Sequence[T], spots: Sequence[Spot]) -> List[Sequence[T]]:
    """Places in parts for the kernel to take: those that it may refuse each alone, for it refuses a part as a whole, and
    takes its time to undo what it has done of it."""
    doubtful = _doubtful(spots)
    others = [place for place, alone in zip(places, doubtful) if not alone]
    singles: List[Sequence[T]] = [[place] for place, alone in zip(places, doubtful) if alone]
    return [others, *singles] if others else singles


def _doubtful(spots: Sequence[Spot]) -> List[bool]:
    """Whether the instruction at each place is one of DOUBTFUL."""
    which, values = DOUBTFUL.get(os.uname().machine, (0, frozenset()))
    found: Dict[Spot, bytes] = {}
    for path in {spot.path for spot in spots} if values else ():
        with suppress(OSError), open(path, "rb") as file:
            found.update({one: os.pread(file.fileno(), 1, one.offset + which) for one in spots if one.path == path})
    return [any(byte in values for byte in found.get(spot, b"")) for spot in spots]


def _attach_multi(keeper: Keeper, program: int, places: Sequence[Place], returns: bool, found: Attached) -> None:
    """One link; where the kernel refuses it, one for each half, until the place is found that is the reason."""
    spots = [place.spot for place in places]
    try:
        offsets = tuple(spot.offset for spot in spots)
        cookies = tuple(place.cookie for place in places)
        semaphores = tuple(spot.semaphore for spot in spots)
        values = (spots[0].path.encode(), offsets, cookies, semaphores, returns)
        found.fds.append(keeper.call("multi", values, [program]))
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        if len(places) == 1:
            found.refused.append((places[0], error))
            return
        half = len(places) // 2
        _attach_multi(keeper, program, places[:half], returns, found)
        _attach_multi(keeper, program, places[half:], returns, found)


def _multi(
    program: int, path: bytes, offsets: Sequence[int], cookies: Sequence[int], semaphores: Sequence[int], returns: bool
) -> int:
    count = len(offsets)
    text = ctypes.create_string_buffer(path)
    arrays = [(ctypes.c_uint64 * count)(*numbers) for numbers in (offsets, semaphores, cookies)]
    pointers = [ctypes.addressof(array) for array in arrays]
    if not any(semaphores):
        pointers[1] = 0
    flags = MULTI_RETURN if returns else 0
    attribute = struct.pack(
        "=IIIIQQQQIII4x", program, 0, UPROBE_MULTI, 0, ctypes.addressof(text), *pointers, count, flags, 0
    )
    return kernel.bpf_call(LINK_CREATE, attribute, f"probe in {path.decode('utf-8', 'replace')}")[0]


def _attach_each(keeper: Keeper, program: int, places: Sequence[Place], returns: bool, found: Attached) -> None:
    for place in places:
        spot = place.spot
        try:
            event = keeper.call("open", (spot.path, spot.offset, spot.semaphore, returns))
        except OSError as error:
            if error.errno not in REFUSED:
                raise
            found.refused.append((place, error))
            continue
        found.fds.append(event)
        found.fds.append(keeper.call("link", (place.cookie, f"probe in {spot.path}"), [program, event]))


def _open(path: str, offset: int, semaphore: int, returns: bool) -> int:
    """A perf event of the uprobe PMU."""
    text = ctypes.create_string_buffer(path.encode())
    config = (1 if returns else 0) | semaphore << SEMAPHORE_SHIFT
    counter = kernel.Counter(_pmu_type(), config, config1=ctypes.addressof(text), config2=offset)
    return kernel.open_perf_event(counter, kernel.online_cpus()[0], what=f"probe in {path}")


def _link(program: int, event: int, cookie: int, what: str) -> int:
    attribute = struct.pack("=IIIIQ", program, event, PERF_EVENT_LINK, 0, cookie)
    return kernel.bpf_call(LINK_CREATE, attribute, what)[0]


CALLS: Mapping[str, Call] = {"multi": _multi, "open": _open, "link": _link}
"""What the keeper is asked for."""


def keeper() -> Keeper:
    """Start one."""
    return Keeper(CALLS, number=kernel.own_process)


@cache
def _pmu_type() -> int:
    try:
        with open(f"{PMU}/type") as file:
            return int(file.read())
    except OSError as error:
        raise OSError(errno.ENOSYS, "this kernel has no user probes (CONFIG_UPROBES)", "probe") from error

"""Counters and watchpoints: `perf:NAME[:N]`, `watch:ADDRESS[:BYTES[:MODE]]`, by the names that perf has for events.

Sources: linux/perf_event.h (perf_hw_id, perf_sw_ids, perf_hw_cache_id and what is or-ed to it),
linux/hw_breakpoint.h, linux/bpf_perf_event.h; tools/perf/Documentation/perf-list.txt for the names.
"""

from __future__ import annotations

import errno
import os
import re
from typing import Dict, Optional, Tuple

from ktap import kernel
from ktap.demand import BYTES, KERNEL, USER, Expression, Number, Place, Read
from ktap.fetch import Argument, Shape, instruction_of
from ktap.fetched import Record, record_of
from ktap.registers import MACHINES, Machine
from vm.named_tuple import NamedTuple
from vm.values import wrap

HARDWARE, SOFTWARE, CACHE, RAW, BREAKPOINT = 0, 1, 3, 4, 5
"""Types of perf events."""
HARDWARE_EVENTS = {
    "cpu-cycles": 0,
    "cycles": 0,
    "instructions": 1,
    "cache-references": 2,
    "cache-misses": 3,
    "branch-instructions": 4,
    "branches": 4,
    "branch-misses": 5,
    "bus-cycles": 6,
    "stalled-cycles-frontend": 7,
    "stalled-cycles-backend": 8,
    "ref-cycles": 9,
}
SOFTWARE_EVENTS = {
    "cpu-clock": 0,
    "task-clock": 1,
    "page-faults": 2,
    "faults": 2,
    "context-switches": 3,
    "cs": 3,
    "cpu-migrations": 4,
    "migrations": 4,
    "minor-faults": 5,
    "major-faults": 6,
    "alignment-faults": 7,
    "emulation-faults": 8,
    "cgroup-switches": 11,
}
CLOCKS = ("cpu-clock", "task-clock")
"""Software events that count nanoseconds."""
SHORTEST_CLOCK_NS = 10_000
"""What the kernel makes of less (kernel/events/core.c, perf_swevent_start_hrtimer)."""
PERIOD_END = 1 << 63
"""Periods are below it (kernel/events/core.c, perf_event_open)."""
CACHES = {"L1-dcache": 0, "L1-icache": 1, "LLC": 2, "dTLB": 3, "iTLB": 4, "branch": 5, "node": 6}
ACCESSES = {
    "loads": (0, 0),
    "load-misses": (0, 1),
    "stores": (1, 0),
    "store-misses": (1, 1),
    "prefetches": (2, 0),
    "prefetch-misses": (2, 1),
}
MODES = {"r": 1, "w": 2, "rw": 3, "x": 4}
"""What a watchpoint waits for (HW_BREAKPOINT_*)."""
READS = {"x86_64": 3}
"""What `r` is where the processor cannot wait for reads alone: both."""
SIZES = (1, 2, 4, 8)
INSTRUCTION = {"x86_64": (8, 1), "aarch64": (4, 4)}
"""Of a watchpoint that waits for an instruction: the size that the kernel wants, whatever the instruction's is, and what
its address is a multiple of (hw_breakpoint_arch_parse in arch/*/kernel/hw_breakpoint.c)."""
MANY, EACH = 1_000_000, 1
"""Periods where none is written: of what happens all the time, and of what is an event by itself."""
REGISTER_BYTES = {"x86_64": 168, "aarch64": 272}
"""Size of the registers in struct bpf_perf_event_data, which the period and the address follow."""
USER_END = 1 << 63
"""Addresses of processes are below it, the kernel's above."""


class CounterEvent(NamedTuple):
    """One counter or watchpoint."""

    label: str
    name: str
    counter: kernel.Counter
    record: Record


class NoCounter(Exception):
    """What a script asks for is not there; `status` is the exit status that tells it."""

    def __init__(self, message: str, hint: Optional[str] = None, status: int = 1) -> None:
        super().__init__(message)
        self.hint = hint
        self.status = status


def cache_events() -> Dict[str, int]:
    """Configuration by name of all the caches' events."""
    return {
        f"{cache}-{access}": number | operation << 8 | result << 16
        for cache, number in CACHES.items()
        for access, (operation, result) in ACCESSES.items()
    }


def find_counter(text: str, machine_name: str) -> CounterEvent:
    """The event of `perf:…` or `watch:…`. Raises NoCounter."""
    machine = MACHINES.get(machine_name)
    if machine is None:
        raise NoCounter(f"the registers of {machine_name} are not known", status=3)
    kind, _, rest = text.partition(":")
    event = find_watchpoint(rest, machine) if kind == "watch" else _counter(rest, machine)
    _check(event)
    return event._replace(label=text)


def _counter(rest: str, machine: Machine) -> CounterEvent:
    name, colon, number = rest.partition(":")
    kind, config, period = _configuration(name)
    if colon:
        if not number.isdigit() or not int(number):
            raise NoCounter(f"`{number}` is no number of `{name}` to wait for", "such as perf:cpu-clock:1000000")
        period = int(number)
        if period >= PERIOD_END:
            raise NoCounter(f"`{number}` of `{name}` is more than a counter counts", f"at most {PERIOD_END - 1}")
        if name in CLOCKS and period < SHORTEST_CLOCK_NS:
            raise NoCounter(
                f"the kernel looks at `{name}` every {SHORTEST_CLOCK_NS} ns at most", f"perf:{name}:{SHORTEST_CLOCK_NS}"
            )
    ip, period_value, address = _values(machine)
    arguments = [Argument("period", period_value, Shape("u")), Argument("addr", address, Shape("x"))]
    record = record_of(name, arguments, Argument("ip", ip, Shape("x")), (), True)
    return CounterEvent("", name, kernel.Counter(kind, config, period), record)


def _configuration(name: str) -> Tuple[int, int, int]:
    """Type, configuration and period of a counter."""
    if name in HARDWARE_EVENTS:
        return HARDWARE, HARDWARE_EVENTS[name], MANY
    if name in SOFTWARE_EVENTS:
        return SOFTWARE, SOFTWARE_EVENTS[name], MANY if name in CLOCKS else EACH
    caches = cache_events()
    if name in caches:
        return CACHE, caches[name], MANY
    raw = re.fullmatch(r"r([0-9a-fA-F]+)", name)
    if raw is not None:
        return RAW, int(raw[1], 16), MANY
    from compiler.spell import suggest

    near = suggest(name, [*HARDWARE_EVENTS, *SOFTWARE_EVENTS, *caches])
    hint = f"did you mean `{near}`?" if near else "ktap list 'perf:*' shows them"
    raise NoCounter(f"no counter `{name}`", hint)


def find_watchpoint(rest: str, machine: Machine) -> CounterEvent:
    """The event of `watch:…` without its kind, whether or not the processor has one left. Raises NoCounter."""
    place, _, behind = rest.partition(":")
    size_text, _, mode = behind.partition(":")
    try:
        address, size = int(place, 0), int(size_text or "8")
    except ValueError:
        raise NoCounter(f"`{rest}` is no place to watch", "such as watch:0x4c0ffee0:8:w") from None
    mode = mode or "w"
    if size not in SIZES or mode not in MODES:
        raise NoCounter("a watchpoint is 1, 2, 4 or 8 bytes, and waits for r, w, rw or x", "such as watch:0x601040:4:w")
    watched, multiple = INSTRUCTION[machine.name] if mode == "x" else (size, size)
    if address % multiple:
        raise NoCounter(f"{address:#x} is no multiple of {multiple}: the processor watches aligned places only")
    space = USER if 0 <= address < USER_END else KERNEL
    ip, _, _ = _values(machine)
    value = Read(space, BYTES, Number(wrap(address)), size)
    arguments = [Argument("ip", ip, Shape("x")), Argument("value", value, Shape("s", size))]
    record = record_of(place, arguments, Argument("addr", Number(wrap(address)), Shape("x")), (), True)
    kind = READS.get(machine.name, MODES[mode]) if mode == "r" else MODES[mode]
    counter = kernel.Counter(BREAKPOINT, 0, EACH, breakpoint=kind, config1=address & (1 << 64) - 1, config2=watched)
    return CounterEvent("", place, counter, record)


def _values(machine: Machine) -> Tuple[Expression, Expression, Expression]:
    """Where the context has the instruction, the period and the address."""
    behind = REGISTER_BYTES[machine.name]
    return instruction_of(machine), Place(behind, 8, False), Place(behind + 8, 8, False)


def _check(event: CounterEvent) -> None:
    """Raises NoCounter where the machine does not have it."""
    try:
        os.close(kernel.open_perf_event(event.counter, kernel.online_cpus()[0], what=event.name))
    except OSError as error:
        if event.counter.type == BREAKPOINT:
            what = "all of the processor's are in use" if error.errno == errno.ENOSPC else error.strerror
            raise NoCounter(f"no watchpoint at {event.name}: {what}", status=3) from error
        if error.errno not in (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP, errno.EINVAL):
            raise
        there = ", ".join(available())
        raise NoCounter(f"this machine has no counter `{event.name}`", f"it has {there}", 3) from error


def available() -> Tuple[str, ...]:
    """The counters that this machine has, each under its first name."""
    found: Dict[Tuple[int, int], str] = {}
    for kind, table in ((HARDWARE, HARDWARE_EVENTS), (SOFTWARE, SOFTWARE_EVENTS), (CACHE, cache_events())):
        for name, config in table.items():
            if (kind, config) in found:
                continue
            try:
                os.close(kernel.open_perf_event(kernel.Counter(kind, config, MANY), kernel.online_cpus()[0]))
            except OSError:
                continue
            found[kind, config] = name
    return tuple(found.values())

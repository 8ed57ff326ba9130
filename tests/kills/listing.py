"""What tracers can leave in the kernel and beside it, a line of text for each thing: what two listings differ by came
between them.

    before = listing(family)
    ...
    left = listing(family) - before

Listed are the files of tracefs that tell what is defined, enabled, filtered and triggered, in the main instance and in
others; kprobes; BPF programs, maps and links; what is pinned; perf events; watchpoints; processes; and in processes
that were probed the breakpoints in their text and the semaphores of their markers.

No file lists the kernel's perf events. One lives as long as somebody has a reference to it (kernel/events/core.c:
put_event, perf_release, which lets go of the events of its children too; perf_mmap): a file descriptor
(`/proc/PID/fd`), a mapping of its ring (`/proc/PID/maps`, both called `anon_inode:[perf_event]`), a BPF link or a BPF
map that it is in (listed by their numbers), or a message that nobody has received yet, which goes with its socket.
So what all processes hold is all there are.

Others may trace at the same time. What they hold is left out: they lack the word in the environment that the
processes of a Family have and pass on to their children.
"""

from __future__ import annotations

import glob
import os
import re
import struct
from contextlib import suppress
from pathlib import Path
from typing import Iterator, NamedTuple, Optional, Sequence

from ktap import kernel
from ktap.counters import BREAKPOINT
from ktap.elf import open_binary
from ktap.own_group import GROUP, started

TRACEFS = Path("/sys/kernel/tracing")
SETTINGS = (
    *("kprobe_events", "uprobe_events", "dynamic_events", "synthetic_events", "enabled_functions"),
    *("set_event", "set_event_pid", "set_event_notrace_pid", "set_ftrace_filter", "set_ftrace_notrace"),
    *("set_ftrace_pid", "set_ftrace_notrace_pid", "set_graph_function", "current_tracer", "tracing_on"),
    *("trace_clock", "trace_options", "tracing_cpumask", "tracing_thresh", "buffer_size_kb"),
)
"""Files of an instance, of which the kernel may lack some."""
OF_EVENTS = ("enable", "filter", "trigger")
KPROBES = Path("/sys/kernel/debug/kprobes/list")
OBJECTS = {
    "program": (kernel.PROGRAM_NEXT_ID, "prog_id"),
    "map": (kernel.MAP_NEXT_ID, "map_id"),
    "link": (kernel.LINK_NEXT_ID, "link_id"),
}
"""Kinds of BPF objects: how the numbers of all are asked for, and what /proc/PID/fdinfo calls them."""
PERF_EVENT = "anon_inode:[perf_event]"
MOST_WATCHPOINTS = 16
"""More than any processor has."""
SEMAPHORE_BYTES = 2


class Target(NamedTuple):
    """A process that is probed."""

    pid: int
    program: str
    semaphore: int
    """The address of its markers' semaphore, 0 for none."""


class Family:
    """The processes that have a word in the environment they were started with, and their children."""

    def __init__(self, name: str, word: str) -> None:
        self.variable = {name: word}
        self._text = f"{name}={word}".encode()

    def processes(self) -> list[int]:
        """Those that are there now."""
        return [pid for pid in processes() if self._text in environment(pid)]

    def called(self, name: bytes) -> list[int]:
        """Those that have a name in their command line: whom `pkill -f` finds."""
        return [pid for pid in self.processes() if name in shown(pid, "cmdline")]

    def others(self) -> list[int]:
        """The processes that are none of them. One without an environment may be ending, and whose it was is unknown."""
        found = ((pid, environment(pid)) for pid in processes())
        return [pid for pid, words in found if words and self._text not in words]


def processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def environment(pid: int) -> bytes:
    """Empty where the process has none, or is no more."""
    return shown(pid, "environ")


def shown(pid: int, file: str) -> bytes:
    """What a file of /proc/PID has, nothing where the process is no more."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/{file}").read_bytes()
    return b""


def listing(family: Family, targets: Sequence[Target] = ()) -> frozenset[str]:
    """All of it, without what processes outside of the family hold."""
    others = set(family.others())
    found = set(instances(others))
    for root in (TRACEFS, *(TRACEFS / "instances" / name for name in os.listdir(TRACEFS / "instances"))):
        if not belongs_to(root.name, others):
            found.update(settings(root, others))
    if KPROBES.exists():
        found.update(f"kprobe {line}" for line in KPROBES.read_text().splitlines())
    found.update(objects(others))
    found.update(pinned())
    found.update(perf_events(others))
    found.update(watchpoints())
    found.update(f"process {pid}: {command(pid)}" for pid in family.processes())
    for target in targets:
        found.update(breakpoints(target))
        found.update(semaphores(target))
    return frozenset(found)


# -- tracefs ----------------------------------------------------------------------------------------


def instances(others: set[int]) -> Iterator[str]:
    for name in os.listdir(TRACEFS / "instances"):
        if not belongs_to(name, others):
            yield f"instance {name}"


def settings(root: Path, others: set[int]) -> Iterator[str]:
    """What an instance's files say."""
    for name in SETTINGS:
        with suppress(OSError):
            for line in (root / name).read_text(errors="replace").splitlines():
                if not belongs_to(line, others):
                    yield f"{root / name}: {line}"
    for directory in sorted(glob.glob(f"{root}/events/*/*/")):
        for name in OF_EVENTS:
            with suppress(OSError):
                text = Path(directory, name).read_text(errors="replace")
                if not belongs_to(directory, others):
                    yield f"{directory}{name}: {text.strip()}"


def belongs_to(text: str, others: set[int]) -> bool:
    """Whether a text names the group of one of some processes."""
    for match in GROUP.finditer(text):
        with suppress(OSError):
            if int(match[1]) in others and started(int(match[1])) == int(match[2]):
                return True
    return False


# -- BPF --------------------------------------------------------------------------------------------


def objects(others: set[int]) -> Iterator[str]:
    """BPF programs, maps and links that none of some processes holds."""
    there = {kind: set(kernel.object_ids(row[0])) for kind, row in OBJECTS.items()}
    for pid in others:
        for kind, numbers in objects_of(pid).items():
            there[kind] -= numbers
    for kind, numbers in there.items():
        for number in numbers:
            yield f"BPF {kind} {number}"


def objects_of(pid: int) -> dict[str, set[int]]:
    """The numbers of the BPF objects that a process holds, by kind."""
    found: dict[str, set[int]] = {kind: set() for kind in OBJECTS}
    for number, name in descriptors(pid).items():
        if "bpf" not in name:
            continue
        with suppress(OSError):
            text = Path(f"/proc/{pid}/fdinfo/{number}").read_text()
            for kind, (_, label) in OBJECTS.items():
                match = re.search(rf"^{label}:\s*(\d+)$", text, re.M)
                if match:
                    found[kind].add(int(match[1]))
    return found


def pinned() -> Iterator[str]:
    """The files of all BPF file systems."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, place, kind = line.split()[:3]
        if kind == "bpf":
            for directory, directories, files in os.walk(place):
                yield from (f"pinned {directory}/{name}" for name in (*directories, *files))


# -- perf events ------------------------------------------------------------------------------------


def perf_events(others: set[int]) -> Iterator[str]:
    """How many perf events processes hold that are none of some others."""
    for pid in processes():
        if pid in others:
            continue
        open_files = sum(name == PERF_EVENT for name in descriptors(pid).values())
        mapped = mappings(pid).count(PERF_EVENT)
        if open_files or mapped:
            yield f"perf events: process {pid} ({command(pid)}) has {open_files} open, {mapped} mapped"


def held(pid: int) -> int:
    """How many perf events, BPF objects and rings of tracefs a process has open."""
    wanted = (PERF_EVENT, "anon_inode:bpf", f"{TRACEFS}/instances/")
    return sum(name.startswith(wanted) for name in descriptors(pid).values())


def descriptors(pid: int) -> dict[str, str]:
    """The names of a process's open files; none where it is no more."""
    found = {}
    directory = f"/proc/{pid}/fd"
    with suppress(OSError):
        for number in os.listdir(directory):
            with suppress(OSError):
                found[number] = os.readlink(f"{directory}/{number}")
    return found


def mappings(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/maps").read_text(errors="replace")
    return ""


def command(pid: int) -> str:
    with suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return b" ".join(words[:4]).decode(errors="replace").strip() or "no command line"
    return "gone"


def watchpoints() -> Iterator[str]:
    """A line for each hardware watchpoint that a processor has no room for: with one in use there is one more."""
    for cpu in kernel.online_cpus():
        free = free_watchpoints(cpu)
        for number in range(free, MOST_WATCHPOINTS):
            yield f"no room for watchpoint {number + 1} on processor {cpu}"


def free_watchpoints(cpu: int) -> int:
    """How many can be opened on a processor, which they are for a moment."""
    opened: list[int] = []
    try:
        while len(opened) < MOST_WATCHPOINTS:
            counter = kernel.Counter(BREAKPOINT, 0, 1, breakpoint=2, config1=0x1000, config2=8)
            opened.append(kernel.open_perf_event(counter, cpu, what="watchpoint"))
    except OSError:
        return len(opened)
    finally:
        for event in opened:
            os.close(event)
    return len(opened)


# -- probed processes -------------------------------------------------------------------------------


def breakpoints(target: Target) -> Iterator[str]:
    """Where the text of a process is not what its program's file has."""
    contents = Path(target.program).read_bytes()
    for line in mappings(target.pid).splitlines():
        match = re.match(r"(\w+)-(\w+) r-xp (\w+) \S+ \d+\s+(.*)", line)
        if match is None or match[4] != target.program:
            continue
        start, end, offset = (int(word, 16) for word in match.groups()[:3])
        text = memory(target.pid, start, end - start)
        for place, (there, wanted) in enumerate(zip(text, contents[offset:])):
            if there != wanted:
                yield f"breakpoint in {target.program} at {offset + place:#x}: {there:#x} for {wanted:#x}"


def semaphores(target: Target) -> Iterator[str]:
    if target.semaphore:
        (value,) = struct.unpack("=H", memory(target.pid, target.semaphore, SEMAPHORE_BYTES))
        if value:
            yield f"semaphore of {target.program} is {value}"


def memory(pid: int, address: int, size_bytes: int) -> bytes:
    """Bytes of a process. Raises OSError."""
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as file:
        file.seek(address)
        return file.read(size_bytes)


def address_in(program: str, name: str) -> int:
    """The address of a variable in a program that is always at the same place, 0 where it has none."""
    address: Optional[int] = open_binary(program).address_named(name)
    return address or 0

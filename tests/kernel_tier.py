"""Cases with their handlers in the kernel: the programs that live events would run, on events that never happened.

Handlers are chosen and emitted as for live events. The program of an event is loaded as one that the
system call bpf(2) runs (BPF_PROG_TYPE_SYSCALL, BPF_PROG_TEST_RUN) with the raw record as its context;
what it sends is taken from the ring behind every run, so that all happens in the order of the events.
The running task is that of the case: it stands behind the record, and the helpers that would tell of the
test's own task read it there. Memory of the task is memory of the test, at the same addresses.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Mapping, NamedTuple, Optional, Union
from unittest.mock import patch

from corpus import Fired
from synthetic import (
    DEFAULTS,
    KERNEL_RELEASE,
    RAW_LABELS,
    TASK_ADDRESS,
    Names,
    SyntheticSource,
    Values,
    areas,
    number,
    raw_arguments,
    raw_record,
    record,
)

from compiler.bpf import MapFd, compile_program, link
from compiler.ir import HELPERS, Writer
from compiler.lower import interrupts
from compiler.lower.flat import Refused
from ktap import capture, kernel
from ktap.capture import RAW, TRACEPOINT, Spec, capture_ir, scratch_bytes
from ktap.filling import PREEMPT_OFFSET
from ktap.glob import TEXT_VALUE_BYTES
from ktap.lowered import Lowering
from ktap.objects import Objects
from ktap.plan import Captured, Wanted, captured
from ktap.predicate import needs_text
from ktap.print_format import event_text
from ktap.ring_buffer import RingBuffer
from ktap.verifier import NOT_THE_PROGRAM, Unfit
from vm.event import Batch, Loss
from vm.machine import Machine

SYSCALL_PROGRAM, SLEEPABLE = 31, 16
"""BPF_PROG_TYPE_SYSCALL and BPF_F_SLEEPABLE of linux/bpf.h."""
RING_BYTES = 1 << 18
CPUS = 256
"""More than any case names."""
INVENTED_GROUPS = {"test", "raw"}
"""Their events do not interrupt one another."""
KERNEL_MEMORY, TASK_MEMORY = 1 << 40, 1 << 41
"""Where the test has what a case says lies in the kernel: added to its address, and that of the task's structure."""
TASK_BYTES = 1 << 21

# behind the record: what helpers would say of the running task
PAIR, OWNER, CGROUP, CPU, TIME, TASK_AT, COMM, STACKS = 2048, 2056, 2064, 2072, 2080, 2088, 2096, 2112
INTERRUPTS = 2560
CONTEXT_BYTES = 4096
MOST_FRAMES = 16
"""Of a stack."""
STACK_BYTES = 8 * (1 + MOST_FRAMES)

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
MAP_FIXED_NOREPLACE = 0x100000


class ContextWriter(Writer):
    """Writes programs that find their task in the context."""

    def __init__(self) -> None:
        super().__init__()
        self.pointers: set[str] = set()
        """Integers made from pointers of the program itself."""

    def value(self, instruction: str) -> str:
        operand = super().value(instruction)
        if instruction.startswith("ptrtoint ptr ") or self.pointers & set(re.findall(r"%\w+", instruction)):
            self.pointers.add(operand)
        return operand

    def call(self, helper: str, *arguments: Union[str, int]) -> str:
        if helper in WORDS:
            word = self.load(8, "%ctx", WORDS[helper])
            return word if HELPERS[helper].result == "i64" else self.value(f"trunc i64 {word} to i32")
        if helper == "get_current_comm":
            for offset in (0, 8):
                self.store(8, self.load(8, "%ctx", COMM + offset), str(arguments[0]), offset)
            return "0"
        if helper == "this_cpu_ptr":
            return self.at("%ctx", INTERRUPTS)
        if helper == "get_stack":
            return self.stack(str(arguments[1]), int(arguments[2]), int(arguments[3]))
        if helper in ("probe_read_kernel", "probe_read_kernel_str") and str(arguments[2]) not in self.pointers:
            return self.kernel_read(helper, *arguments)
        return super().call(helper, *arguments)

    def stack(self, target: str, size_bytes: int, flags: int) -> str:
        """The frames of the case's stack, at most as many as fit."""
        place = STACKS + (STACK_BYTES if flags & 256 else 0)
        skip = flags & 255
        for frame in range(min(size_bytes // 8, MOST_FRAMES - skip)):
            self.store(8, self.load(8, "%ctx", place + 8 * (1 + frame + skip)), target, 8 * frame)
        length = self.value(f"sub i64 {self.load(8, '%ctx', place)}, {8 * skip}")
        over = self.value(f"icmp sgt i64 {length}, {size_bytes}")
        length = self.value(f"select i1 {over}, i64 {size_bytes}, i64 {length}")
        return self.value(f"select i1 {self.value(f'icmp slt i64 {length}, 0')}, i64 0, i64 {length}")

    def kernel_read(self, helper: str, target: Union[str, int], size: Union[str, int], source: Union[str, int]) -> str:
        """Low addresses are those of a case, and so is the task: the test has them elsewhere."""
        low, high, task, real, both = (self.fresh(name) for name in ("low", "high", "task", "real", "both"))
        user = helper.replace("kernel", "user")
        self.branch(self.value(f"icmp ult i64 {source}, {KERNEL_MEMORY}"), low, high)
        self.label(low)
        one = super().call(user, target, size, self.value(f"add i64 {source}, {KERNEL_MEMORY}"))
        self.goto(both)
        self.label(high)
        behind = self.value(f"sub i64 {source}, {TASK_ADDRESS}")
        self.branch(self.value(f"icmp ult i64 {behind}, {TASK_BYTES}"), task, real)
        self.label(task)
        two = super().call(user, target, size, self.value(f"add i64 {behind}, {TASK_MEMORY}"))
        self.goto(both)
        self.label(real)
        three = super().call(helper, target, size, source)
        self.goto(both)
        self.label(both)
        return self.value(f"phi i64 [ {one}, %{low} ], [ {two}, %{task} ], [ {three}, %{real} ]")


WORDS = {
    "get_current_pid_tgid": PAIR,
    "get_current_uid_gid": OWNER,
    "get_current_cgroup_id": CGROUP,
    "get_smp_processor_id": CPU,
    "ktime_get_ns": TIME,
    "get_current_task": TASK_AT,
}


def context(raw: bytes, values: Values, time_ns: int) -> bytes:
    """A record and the task of an event, as programs find them."""
    block = bytearray(raw.ljust(CONTEXT_BYTES, b"\0"))
    owner = number(values["gid"]) << 32 | number(values["uid"])
    pair = number(values["pid"]) << 32 | number(values["tid"])
    numbers = (pair, owner, number(values["cgroup"]), number(values["cpu"]), time_ns, TASK_ADDRESS)
    struct.pack_into("=6Q", block, PAIR, *numbers)
    struct.pack_into("=16s", block, COMM, values["execname"].encode()[:15])
    struct.pack_into("=I", block, INTERRUPTS, number(values.get("in_interrupt", "0")) << 16)
    for place, name in ((STACKS, "stack"), (STACKS + STACK_BYTES, "ustack")):
        frames = [number(frame) for frame in values.get(name, "").split(",") if frame]
        struct.pack_into(f"=q{len(frames)}Q", block, place, 8 * len(frames), *frames)
    return bytes(block)


class Elsewhere(Exception):
    """A case says that memory lies where the test cannot have it."""


@contextmanager
def memory(values: Values) -> Iterator[None]:
    """What a case says lies in memory, where programs look for it. Raises Elsewhere."""
    page = mmap.PAGESIZE
    mapped: set[int] = set()
    contents = [(address, content) for address, content in areas(values, "user")]
    contents += [(moved(address), content) for address, content in areas(values, "kernel")]
    try:
        for address, content in contents:
            for first in range(address & -page, address + len(content), page):
                if first in mapped:
                    continue
                flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_FIXED_NOREPLACE
                if LIBC.mmap(first, page, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0) != first:
                    raise Elsewhere(f"memory at {first:#x}")
                mapped.add(first)
            ctypes.memmove(address, content, len(content))
        yield
    finally:
        for first in mapped:
            LIBC.munmap(first, page)


def moved(address: int) -> int:
    """Where the test has memory of the kernel."""
    return address - TASK_ADDRESS + TASK_MEMORY if address >= TASK_ADDRESS else address + KERNEL_MEMORY


class Step(NamedTuple):
    """An event that happens: which one, and whether a probe wants it."""

    number: int
    fired: Fired
    time_ns: int
    wanted: bool


class KernelSource(SyntheticSource):
    """See vm.event.Source: as SyntheticSource, with handlers in the kernel where they can be."""

    def __init__(self, machine: Machine, fired: Sequence[Fired], interrupting: bool = False) -> None:
        """`interrupting`: the invented events fire in the middle of one another, for all that lowering knows."""
        super().__init__(machine, fired)
        self.groups = interrupts.GROUPS_OF_TASKS | (set() if interrupting else INVENTED_GROUPS)
        self.lowering = Lowering(machine)
        self.programs: dict[int, int] = {}
        self.maps: list[int] = []
        self.ring: Optional[RingBuffer] = None
        self.steps: list[Step] = []
        self.bits = 0

    @property
    def lowered(self) -> int:
        """How many handlers are in the kernel."""
        return len(self.lowering.plan.kernel) if self.lowering.plan is not None else 0

    def fire(self) -> None:
        """Choose what goes to the kernel; note which events happen."""
        whole = self.events
        self.bits = max((len(event.wanted.filters) for event in whole), default=0)
        self.note_steps(whole)
        found = [event.wanted for event in whole]
        self.lowering.text_of = lambda number: event_text(found[number].format, Names(), KERNEL_RELEASE).show
        while not self.tried(found):
            self.events = whole
        super().fire()
        self.records = []
        for site in self.lowering.outside() if self.programs else ():
            self.points += [(site.event, (site.handle,))] * (1 << self.bits)  # type: ignore[list-item]

    def tried(self, found: Sequence[Wanted]) -> bool:
        """Choose handlers and load their programs; False where one of them was refused."""
        with patch.object(interrupts, "GROUPS_OF_TASKS", self.groups):
            lowered = self.lowering.choose(self.probes, found)
        if not lowered:
            return True
        self.lowering.prepare(len(found), Objects())
        try:
            self.load([captured(self.lowering.divided(event, lowered, self.demands), self.symbols) for event in found])
        except Refused as refused:
            self.unload()
            self.lowering.refuse(refused)
            return False
        return True

    def unload(self) -> None:
        for fd in (*self.programs.values(), *self.maps):
            os.close(fd)
        self.programs, self.maps = {}, []
        if self.ring is not None:
            self.ring.close()
            self.ring = None

    def note_steps(self, whole: Sequence[Captured]) -> None:
        time_ns = 0
        for fired in self.fired:
            time_ns += fired.after_ns
            labels = (fired.name, RAW_LABELS.get(fired.name))
            for place, event in enumerate(whole):
                if event.wanted.label in labels:
                    wanted = any(True for _ in record(event, fired, time_ns, 0))
                    self.steps.append(Step(place, fired, time_ns, wanted))

    # -- programs -----------------------------------------------------------------------------

    def load(self, events: list[Captured]) -> None:
        """Load the program of every event that handlers in the kernel are for."""
        self.events = events
        self.ring = RingBuffer(RING_BYTES, Objects())
        with patch.object(capture, "Writer", ContextWriter):
            for place, event in enumerate(events):
                if event.wanted.bodies:
                    self.programs[place] = self.program(place, event)
        layouts = [event.case.layout for event in events]
        self.ring.expect(layouts + [site.layout for site in self.lowering.outside()], self.bits)

    def program(self, place: int, event: Captured) -> int:
        lowering, ring = self.lowering, self.ring
        assert ring is not None
        where = RAW if event.wanted.context == RAW else TRACEPOINT
        case = event.case._replace(sends=False)
        lowering.begin()
        spec = Spec(where, (case,), self.bits, "ring", emit=lowering.emit)
        ir = capture_ir(spec)
        code = lowering.check((case,), lambda: compile_program(ir, kernel.instruction_set()))
        spec = spec._replace(scratch_bytes=lowering.scratch_bytes)
        identity = event.wanted.format.id if event.wanted.format is not None else 0
        values: dict[str, Union[int, MapFd]] = {**lowering.values(), "event": place, "event_id": identity}
        values["own_process"] = -1
        values[PREEMPT_OFFSET] = 0
        values["losses"] = self.map(kernel.ARRAY, 8, len(self.events))
        values.update((name, MapFd(fd)) for name, fd in ring.maps)
        if lowering.room_bytes:
            values["room"] = self.map(kernel.PERCPU_ARRAY, lowering.room_bytes, 1)
        if scratch_bytes(spec):
            values["scratch"] = self.map(kernel.ARRAY, scratch_bytes(spec), CPUS)
        if any(needs_text(condition) for condition in case.filters):
            values["text"] = self.map(kernel.ARRAY, TEXT_VALUE_BYTES, CPUS)
        return lowering.check((case,), lambda: load(link(code, values)))

    def map(self, kind: int, value_bytes: int, entries: int) -> MapFd:
        fd = kernel.create_map(kind, "ktap_test", 4, value_bytes, entries)
        self.maps.append(fd)
        return MapFd(fd)

    # -- running ------------------------------------------------------------------------------

    def poll(self, timeout_ns: int) -> Batch:
        """The records of one event; first none, so that ticks which are due before it run before it."""
        if not self.programs:
            return self.poll_vm()
        while self.steps:
            step = self.steps[0]
            if step.wanted and self.time_ns < step.time_ns - 1:
                self.time_ns = step.time_ns - 1
                return Batch((), self.time_ns, False)
            del self.steps[0]
            records = self.run(step)
            if step.wanted:
                self.time_ns = step.time_ns - any(s.wanted and s.time_ns == step.time_ns for s in self.steps)
                return Batch(records, self.time_ns, not any(later.wanted for later in self.steps))
            assert not records, "a filter let through in the kernel what it must not"
        return Batch((), self.time_ns, True)

    def poll_vm(self) -> Batch:
        if not self.records and self.steps:
            for step in self.steps:
                self.records += record(self.events[step.number], step.fired, step.time_ns, step.number << self.bits)
            self.steps = []
        return super().poll(0)

    def run(self, step: Step) -> list[tuple[object, ...]]:
        """What handlers in the kernel send about an event, then what handlers in the VM are given of it."""
        event = self.events[step.number]
        records: list[tuple[object, ...]] = []
        program = self.programs.get(step.number)
        if program is not None:
            assert self.ring is not None
            values = {**DEFAULTS, **step.fired.values}
            values.setdefault("tid", values["pid"])
            format = event.wanted.format
            raw = raw_record(format, values) if format else raw_arguments(event, values)
            with memory(values):
                kernel.test_run(program, context(raw, values, step.time_ns))
            records += self.ring.drain().records
        records += record(event, step.fired, step.time_ns, step.number << self.bits)
        return records

    def quiet(self) -> None:
        pass

    def settle(self, last: bool = False) -> None:
        if self.lowering.tables is not None:
            self.lowering.tables.drain()

    def unread(self, end_ns: int) -> Mapping[str, int]:
        return {}

    def losses(self) -> Sequence[Loss]:
        return ()

    def close(self) -> None:
        if self.closed:
            return
        super().close()
        self.unload()
        self.lowering.close()


def load(instructions: bytes) -> int:
    """A program that can be run by the system call. Raises Unfit."""
    try:
        return kernel.load(SYSCALL_PROGRAM, instructions, flags=SLEEPABLE)
    except OSError as error:
        if error.errno in NOT_THE_PROGRAM:
            raise
        raise Unfit(f"is refused by the kernel's verifier: {error.strerror}") from error

"""Calls where the address to return to is in a register: who called a function that begins is on no stack yet."""

from __future__ import annotations

import struct
from typing import Iterable, List, Mapping, cast

import pytest

from ktap.call_events import Call, NoCall, Where, find_calls
from ktap.captured import KERNEL_STACK, Kind, Plumbing
from ktap.counters import find_watchpoint
from ktap.demand import KERNEL, USER, Demand, Place, Read
from ktap.functions import KernelFunctions
from ktap.layout import Layout, Slot
from ktap.perf_event import KERNEL_MARK, Sample
from ktap.perf_values import Who, tracepoint_fills
from ktap.plan import Captured, Case, Wanted
from ktap.registers import MACHINES
from ktap.tasks import Tasks

ADDRESS = 0xFFFF800080100000
CALLER, TRAMPOLINE = ADDRESS + 0x500, ADDRESS + 0x900
SYMBOLS = {CALLER: "vfs_write+0xdc", TRAMPOLINE: "arch_rethook_trampoline+0x0"}


class Functions(KernelFunctions):
    """A kernel with one function."""

    def can_be_probed(self) -> bool:
        return True

    def addresses(self, names: Iterable[str]) -> Mapping[str, List[int]]:
        return {name: [ADDRESS] for name in names if name == "write_null"}

    def matching(self, pattern: str) -> Mapping[str, List[int]]:
        return {"write_null": [ADDRESS]}

    def why_refused(self, name: str, unsafe: bool = False) -> None:
        return None

    def is_forbidden(self, address: int) -> bool:
        return False


def call(text: str, machine: str, condition: str | None = None) -> Call:
    where = Where(Functions, lambda: None, machine, 1)
    (found,) = find_calls(text, condition, Demand(), where)
    return found


@pytest.mark.parametrize(("machine", "origin"), [("aarch64", Place(240, 8, False)), ("x86_64", None)])
def test_the_function_tracers_event_says_who_called(machine: str, origin: object) -> None:
    """On arm64 it told what lay on the stack."""
    recipe = call("ftrace:function", machine, "ip==write_nul*").record.recipe
    parent = recipe.parts[-1].what
    assert parent == origin or (origin is None and isinstance(parent, Read))


@pytest.mark.parametrize(
    ("machine", "text", "hides"),
    [
        ("aarch64", "probe:write_null", True),
        ("aarch64", "probe:write_nul*", True),
        ("aarch64", "probe:write_null+0xc", False),
        ("aarch64", "probe:write_null%return", False),
        ("x86_64", "probe:write_null", False),
    ],
)
def test_which_stacks_lack_the_caller(machine: str, text: str, hides: bool) -> None:
    assert call(text, machine).called.hides_caller == hides


def test_the_caller_is_put_in_once_and_no_trampoline_is() -> None:
    plumbing = Plumbing(lambda address: SYMBOLS.get(address, "f+0x0"))
    frames = (ADDRESS, ADDRESS + 8, 0)
    assert plumbing.with_caller(frames, CALLER) == (ADDRESS, CALLER, ADDRESS + 8, 0)
    assert plumbing.with_caller((ADDRESS, CALLER, 0), CALLER) == (ADDRESS, CALLER, 0)
    assert plumbing.with_caller(frames, TRAMPOLINE) == plumbing.with_caller(frames, 0) == frames


def test_places_between_instructions() -> None:
    """What the kernel said of them was: invalid argument."""
    assert call("probe:write_null+0x5", "x86_64").called.offset == 5
    with pytest.raises(NoCall, match="no instruction starts there") as caught:
        call("probe:write_null+0x5", "aarch64")
    assert caught.value.hint == "instructions of this processor are at multiples of 4"


@pytest.mark.parametrize("address", ["0x404020", "0xffffa1b2c3d0", "0xaaaae1fc0000"])
def test_watched_memory_of_processes_may_lie_high(address: str) -> None:
    """Addresses of arm64's processes have a bit more than those of x86-64's: it was taken for the kernel's memory."""
    value = find_watchpoint(f"{address}:4:w", MACHINES["aarch64"]).record.recipe.parts[-1].what
    assert isinstance(value, Read) and value.space == USER
    value = find_watchpoint("0xffff800080100000:4:w", MACHINES["aarch64"]).record.recipe.parts[-1].what
    assert isinstance(value, Read) and value.space == KERNEL


@pytest.mark.parametrize(("machine", "waits"), [("aarch64", 1), ("x86_64", 3)])
def test_reads_are_waited_for_alone_where_the_processor_can(machine: str, waits: int) -> None:
    assert find_watchpoint("0x404020:8:r", MACHINES[machine]).counter.breakpoint == waits


@pytest.mark.parametrize(
    ("chain", "wanted"),
    [
        ((CALLER, CALLER, TRAMPOLINE, ADDRESS), (CALLER, TRAMPOLINE)),
        ((CALLER, CALLER, CALLER, ADDRESS), (CALLER, CALLER)),
        ((CALLER, ADDRESS), (CALLER, ADDRESS)),
    ],
)
def test_the_caller_that_a_tracepoint_has_twice(chain: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    """Without BPF the kernel's own stacks at tracepoints have it so; a function that calls itself is there once less."""
    kind = Kind("event", Layout((Slot(KERNEL_STACK, "I", 16, True),)))
    event = Captured(cast(Wanted, None), cast(Case, None), kind)
    fills = tracepoint_fills(event, "aarch64")
    words = [word - (1 << 64) for word in chain]
    sample = Sample(0, 0, 1, 1, 0, 0, 0, 0, struct.pack(f"={1 + len(words)}q", KERNEL_MARK, *words), b"", 0, b"", None)
    found = fills[KERNEL_STACK](sample, Who(1, 1), cast(Tasks, None))
    assert found == struct.pack("=2Q", *wanted)
    assert KERNEL_STACK not in tracepoint_fills(event, "x86_64")

"""Nothing of ktap remains when it is killed, whatever it was doing; and what remained would be found.

`make kills` is the same 200 times (tests/kills/longer.py).
"""

from __future__ import annotations

import os
import re
import subprocess
from contextlib import contextmanager
from typing import Callable, ContextManager, Iterator

import pytest
from conftest import sole_use

from ktap import kernel, uprobes
from ktap.counters import BREAKPOINT
from ktap.elf import open_binary
from ktap.keeper import Keeper
from ktap.own_group import write
from tests.kills.commands import BACKENDS, Command
from tests.kills.listing import TRACEFS
from tests.kills.rounds import ATTACH, DETACH, RUN, START, Rounds

pytestmark = [pytest.mark.live, pytest.mark.root]
SEED = 11
MANY = 40
"""Processes that are probed, so that it takes a while to let go of them."""


@pytest.fixture(scope="module")
def rounds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rounds]:
    with sole_use("watchpoints"), Rounds(tmp_path_factory.mktemp("rounds"), SEED) as made:
        yield made


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_remains_when_it_is_killed(rounds: Rounds, backend: str) -> None:
    drawn = (rounds.draw(backend) for _ in iter(int, 1))
    command = next(one for one in drawn if one.whom == "a command" and one.tier != "kernel")
    measured = rounds.measure(command)
    for phase in (START, ATTACH, RUN, DETACH):
        assert rounds.kill(command, measured, phase).left == frozenset(), (phase, command.words)


@pytest.mark.parametrize("backend", BACKENDS)
def test_breakpoints_go_when_it_is_killed_while_it_attaches_and_detaches(rounds: Rounds, backend: str) -> None:
    """The kernel neither puts nor removes them for a process that is being killed."""
    script = f"trace probe:{rounds.program}:each_* {{ n[probename] += 1 }}"
    command = Command(("--backend", backend, "-e", script), backend, "auto", ("functions",), "everyone")
    measured = rounds.measure(command)
    others = [subprocess.Popen([rounds.program], env={"HOME": "/"}) for _ in range(MANY)]
    try:
        for phase in (ATTACH, DETACH):
            assert rounds.kill(command, measured, phase).left == frozenset()
    finally:
        end(others)


def end(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.kill()
        process.wait()


# -- what remained would be found -----------------------------------------------------------------


@contextmanager
def held(rounds: Rounds, fd: int) -> Iterator[None]:
    """A file that a process has which ktap has left behind."""
    left = subprocess.Popen(["sleep", "100"], env=rounds.environment(), pass_fds=[fd])
    os.close(fd)
    try:
        yield
    finally:
        end([left])


def a_perf_event(rounds: Rounds) -> ContextManager[None]:
    return held(rounds, kernel.open_perf_event(kernel.Counter(kernel.TYPE_SOFTWARE, kernel.CPU_CLOCK, 1 << 40), 0))


def a_watchpoint(rounds: Rounds) -> ContextManager[None]:
    counter = kernel.Counter(BREAKPOINT, 0, 1, breakpoint=2, config1=0x1000, config2=8)
    return held(rounds, kernel.open_perf_event(counter, kernel.online_cpus()[0]))


def a_map(rounds: Rounds) -> ContextManager[None]:
    return held(rounds, kernel.create_map(kernel.ARRAY, "left", 4, 4, 1))


def a_program(rounds: Rounds) -> ContextManager[None]:
    return held(rounds, kernel.load(kernel.RAW_TRACEPOINT, kernel.RETURN_ZERO))


@contextmanager
def a_definition(rounds: Rounds) -> Iterator[None]:
    write(f"{TRACEFS}/uprobe_events", f"p:left_behind/e {rounds.program}:0x10")
    try:
        yield
    finally:
        write(f"{TRACEFS}/uprobe_events", "-:left_behind/e")


@contextmanager
def an_instance(rounds: Rounds) -> Iterator[None]:
    path = TRACEFS / "instances" / "left_behind"
    path.mkdir()
    try:
        yield
    finally:
        path.rmdir()


@contextmanager
def an_event_on(rounds: Rounds) -> Iterator[None]:
    path = TRACEFS / "events/signal/signal_generate"
    (path / "filter").write_text("sig == 99")
    (path / "trigger").write_text("traceoff if sig == 99")
    try:
        yield
    finally:
        (path / "trigger").write_text("!traceoff if sig == 99")
        (path / "filter").write_text("0")


@contextmanager
def a_breakpoint(rounds: Rounds) -> Iterator[None]:
    keeper = Keeper(uprobes.CALLS)
    try:
        offset = open_binary(rounds.program).address_named("each_1")
        assert offset is not None
        os.close(keeper.call("open", (rounds.program, offset & 0xFFFFF, 0, False)))
        yield
    finally:
        keeper.let_go()
        keeper.close()


@contextmanager
def a_process(rounds: Rounds) -> Iterator[None]:
    left = subprocess.Popen(["sleep", "100"], env=rounds.environment())
    try:
        yield
    finally:
        end([left])


@contextmanager
def a_file(rounds: Rounds) -> Iterator[None]:
    path = rounds.temporary / "left"
    path.touch()
    try:
        yield
    finally:
        path.unlink()


@contextmanager
def a_pin(rounds: Rounds) -> Iterator[None]:
    place = rounds.directory / "pins"
    place.mkdir()
    subprocess.run(["mount", "-t", "bpf", "bpf", place], check=True)
    try:
        (place / "left").mkdir()
        yield
    finally:
        subprocess.run(["umount", place], check=True)
        place.rmdir()


LEFT = {
    a_perf_event: "perf events: process .* has 1 open",
    a_watchpoint: "no room for watchpoint",
    a_map: "BPF map",
    a_program: "BPF program",
    a_definition: "uprobe_events: p:left_behind/e",
    an_instance: "instance left_behind",
    an_event_on: "signal_generate/trigger: traceoff",
    a_breakpoint: "breakpoint in .*: 0xcc for",
    a_process: "process .*: sleep 100",
    a_file: "file .*/left",
    a_pin: "pinned .*/left",
}


@pytest.mark.parametrize("leave", LEFT, ids=lambda leave: leave.__name__)
def test_what_is_left_is_seen(rounds: Rounds, leave: Callable[[Rounds], ContextManager[None]]) -> None:
    before = rounds.listing()
    with leave(rounds):
        left = rounds.listing() - before
        assert any(re.search(LEFT[leave], line) for line in left), left

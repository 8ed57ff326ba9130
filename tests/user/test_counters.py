"""Counters and watchpoints."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest
from c_program import WORK, compiled
from tracing import EVENTS, SPIN, python, trace

from ktap import kernel
from ktap.counters import HARDWARE_EVENTS, NoCounter, available, cache_events, find_counter
from ktap.elf import open_binary
from vm.diagnostic import Refusal

pytestmark = pytest.mark.live
TIERS = ("vm", "kernel", EVENTS)
MACHINE = os.uname().machine
BEFORE = MACHINE == "aarch64"
"""A watchpoint fires before the access, so that the value is the one that is overwritten."""


@pytest.mark.parametrize("tier", TIERS)
def test_page_faults(tier: str) -> None:
    pages = 3000
    script = "var faults = 0 trace perf:page-faults { faults += 1 } trace_end { print(faults) }"
    code = f"import mmap\nm = mmap.mmap(-1, 4096 * {pages})\nfor n in range({pages}): m[4096 * n] = 1"
    without = int(trace(script, python("import mmap"), tier=tier).lines[0])
    counted = int(trace(script, python(code), tier=tier).lines[0]) - without
    assert pages * 0.9 <= counted <= pages * 1.2 or counted >= pages // 512  # where pages are huge


OTHER_TRACER = f"""
import mmap, sys
sys.path.insert(0, {str(Path(__file__).resolve().parents[2])!r})
from ktap import kernel
from ktap.perf_event import IDENTIFIER, TIME, USE_CLOCK
counter = kernel.Counter(kernel.TYPE_SOFTWARE, 2, 1, IDENTIFIER | TIME, USE_CLOCK, clock=0)
opened = [kernel.open_perf_event(counter, cpu) for cpu in kernel.online_cpus()]
pages = mmap.mmap(-1, 4096 * 600)
for page in range(600): pages[4096 * page] = 1
"""
"""Counts page faults, too, with the clock of the year, and makes some."""


def test_without_bpf_events_that_others_count_too() -> None:
    """The kernel gives both one sample, with the number and the time of who came last; before 6.3 each has its own."""
    script = """
    var faults = 0 var minor = 0 var years = 0
    trace perf:page-faults { faults += 1  if (nsecs > 1 << 60) { years += 1 } }
    trace perf:page-faults, perf:minor-faults /execname ~ "*"/ { minor += 1 }
    trace_end { print(faults > 600, minor > faults, years) }
    """
    traced = trace(script, [sys.executable, "-c", OTHER_TRACER], tier=EVENTS)
    assert traced.lines == ["true\ttrue\t0"]
    assert not traced.losses
    told = [notice.partition(",")[0] for notice in traced.notices]
    assert told in ([], ["perf:page-faults: it is counted by others"])


def test_what_a_counter_tells() -> None:
    script = (
        "var n = 0 trace perf:minor-faults { n += 1  if (n == 1) { print(probename, arg0 == args.ip, arg1, argstr) } }"
    )
    (line,) = trace(script, python("pass")).lines
    name, same, period, text = line.split("\t")
    assert (name, same, period) == ("minor-faults", "true", "1")
    assert text.startswith("minor-faults: (0x")


@pytest.mark.parametrize("tier", TIERS)
def test_each_so_many_nanoseconds(tier: str) -> None:
    script = "var n = 0 trace perf:task-clock:1000000, perf:cpu-clock:1000000 { n += 1 } trace_end { print(n > 20) }"
    code = "import time\nend = time.monotonic() + 0.3\nwhile time.monotonic() < end: pass"
    assert trace(script, python(code), tier=tier).lines == ["true"]


def test_counters_that_the_machine_lacks() -> None:
    there = available()
    assert "page-faults" in there
    numbers = {HARDWARE_EVENTS.get(name) for name in there}
    lacking = [name for name, number in HARDWARE_EVENTS.items() if number not in numbers]
    lacking += [name for name in cache_events() if name not in there]
    for name in lacking[:3]:
        with pytest.raises(NoCounter) as caught:
            find_counter(f"perf:{name}", MACHINE)
        assert caught.value.status == 3
        assert "page-faults" in str(caught.value.hint)


@pytest.mark.usefixtures("watchpoints")
def test_names_are_those_of_perf() -> None:
    events = cache_events()
    assert events["L1-dcache-loads"] == 0
    assert events["LLC-load-misses"] == 0x10002
    assert events["dTLB-store-misses"] == 0x10103
    assert events["iTLB-loads"] == 4


def refusal(event: str) -> str:
    with pytest.raises(Refusal) as caught:
        trace(f"trace {event} {{ }}", duration_s=0.1)
    return f"{caught.value.diagnostics[0].message}; {caught.value.diagnostics[0].hint}"


def test_what_is_wrong() -> None:
    assert "did you mean `page-faults`?" in refusal("perf:page-fault")
    assert "no number of `cs`" in refusal("perf:cs:often")
    assert "at most 9223372036854775807" in refusal("perf:cs:99999999999999999999")
    assert "every 10000 ns at most" in refusal("perf:cpu-clock:9999")
    assert "no multiple of 8" in refusal("watch:0x123:8:w")
    assert "1, 2, 4 or 8 bytes" in refusal("watch:0x120:3:w")
    assert "1, 2, 4 or 8 bytes" in refusal("watch:0x120:8:q")
    assert "no place to watch" in refusal("watch:here:8:w")


def address_of(program: Path, name: str) -> int:
    address = open_binary(str(program)).address_named(name)
    assert address is not None
    return address


@pytest.mark.parametrize("tier", TIERS[:2])
@pytest.mark.usefixtures("watchpoints")
def test_a_variable_is_watched(tmp_path: Path, tier: str) -> None:
    program = compiled(tmp_path / "fixed", WORK, "-no-pie")
    script = f"""
    var writes = 0  var sum = 0
    trace watch:{address_of(program, "watched"):#x}:8:w /value > 0 && value < 100/ {{ writes += 1  sum += args.value }}
    trace_end {{ print(writes, sum) }}
    """
    seen = [n for n in ((0, *range(50)) if BEFORE else range(50)) if n > 0][: 49 - BEFORE]
    assert trace(script, [str(program), "50"], tier=tier).lines == [f"{len(seen)}\t{sum(seen)}"]


@pytest.mark.usefixtures("watchpoints")
def test_what_a_watchpoint_tells(tmp_path: Path) -> None:
    program = compiled(tmp_path / "fixed", WORK, "-no-pie")
    address = address_of(program, "watched")
    functions = open_binary(str(program))
    script = f"trace watch:{address:#x}:8:w /value == 2/ {{ print(arg0, args.addr, args.value, args.ip) }}"
    (line,) = trace(script, [str(program), "4"]).lines
    first, second, value, place = (int(word) for word in line.split("\t"))
    assert (first, second, value) == (address, address, 2)
    around = functions.function_at(place)
    assert around is not None
    assert around.name == "leaf"


WATCHED = r"""
#include <stdlib.h>
volatile unsigned char one = 1; volatile short two = 1; volatile int four = 1; volatile long eight = 1;
int main(int argc, char **argv)
{
    long sum = 0;
    for (int i = 0; i < atoi(argv[1]); i++) { one = two = four = eight = i; sum += one + two + four + eight; }
    return sum < 0;
}
"""
"""Each variable is written and read once in a round; the kernel clears none of them when the program starts."""


@pytest.mark.parametrize("tier", TIERS[:2])
@pytest.mark.parametrize("mode, times", [("w", 1), ("rw", 2), ("r", 2)])
@pytest.mark.usefixtures("watchpoints")
def test_variables_of_every_size_written_and_read(tmp_path: Path, tier: str, mode: str, times: int) -> None:
    """x86 cannot wait for reads alone: there `r` is both."""
    if mode == "r" and MACHINE != "x86_64":
        times = 1
    program = compiled(tmp_path / "watched", WATCHED, "-no-pie")
    sizes = {"one": 1, "two": 2, "four": 4, "eight": 8}
    events = ", ".join(f"watch:{address_of(program, name):#x}:{size}:{mode}" for name, size in sizes.items())
    script = f"""
    trace {events} /execname == watched/ {{ n[probename] += 1  total[probename] += args.value }}
    trace_end {{ for (k, v in sort_pairs(n)) {{ print(k, v, total[k]) }} }}
    """
    rounds = 50
    traced = trace(script, [str(program), str(rounds)], tier=tier)
    assert not traced.losses
    written = sum([1, *range(rounds - 1)]) if BEFORE else sum(range(rounds))
    total = {("w", 1): written, ("r", 1): sum(range(rounds))}.get((mode, times), written + sum(range(rounds)))
    wanted = {f"{address_of(program, name):#x}\t{times * rounds}\t{total}" for name in sizes}
    assert set(traced.lines) == wanted


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("rate, per_s", [("4999hz", 4999), ("997hz", 997), ("250us", 4000), ("1msec", 1000)])
def test_timers_on_every_processor_at_any_rate(tier: str, rate: str, per_s: int) -> None:
    script = f"profile-{rate} {{ n[cpu] += 1 }} trace_end {{ for (k, v in sort_pairs(n)) {{ print(k, v) }} }}"
    begun_s = time.monotonic()
    traced = trace(script, python(SPIN), duration_s=0.5, everyone=True, tier=tier)
    took_s = time.monotonic() - begun_s
    assert not traced.losses
    counts = dict(tuple(map(int, line.split())) for line in traced.lines)
    assert set(counts) == set(kernel.online_cpus())
    for count in counts.values():  # a virtual processor may stand still for a while
        assert 0.3 * 0.5 * per_s <= count <= 1.2 * took_s * per_s


@pytest.mark.usefixtures("watchpoints")
def test_without_bpf_a_watchpoint_tells_where_but_not_what(tmp_path: Path) -> None:
    program = compiled(tmp_path / "fixed", WORK, "-no-pie")
    event = f"watch:{address_of(program, 'watched'):#x}:8:w"
    script = f"var n = 0 trace {event} {{ n += 1  where = args.addr }} trace_end {{ print(n, where) }}"
    found = trace(script, [str(program), "50"], tier=EVENTS).lines
    assert found == trace(script, [str(program), "50"]).lines
    for value in (f"trace {event} {{ print(args.value) }}", f"trace {event} /value == 3/ {{ print(pid) }}"):
        with pytest.raises(Refusal, match=r"`args.value` of"):
            trace(value, [str(program), "50"], tier=EVENTS)


@pytest.mark.usefixtures("watchpoints")
def test_without_bpf_a_watchpoint_whose_filter_does_not_look_at_the_value(tmp_path: Path) -> None:
    program = compiled(tmp_path / "watched", WATCHED, "-no-pie")
    place = address_of(program, "eight")
    condition = f"execname == watched && addr == {place:#x}"
    script = f"var n = 0 trace watch:{place:#x}:8:w /{condition}/ {{ n += 1 }} trace_end {{ print(n) }}"
    assert trace(script, [str(program), "50"], tier=EVENTS).lines == ["50"]


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.usefixtures("watchpoints")
def test_an_instruction_is_watched_wherever_it_is(tmp_path: Path, tier: str) -> None:
    """Instructions of x86 begin at any address, and the kernel wants one size for all of them."""
    code = r"""
    #include <stdlib.h>
    __asm__(".globl odd; .type odd, @function; .balign 16; nop; odd: ret; .size odd, 1");
    void odd(void);
    int main(int argc, char **argv) { for (int i = 0; i < atoi(argv[1]); i++) odd(); return 0; }
    """
    if MACHINE != "x86_64":
        pytest.skip("instructions of other processors are aligned")
    program = compiled(tmp_path / "program", code, "-no-pie")
    place = address_of(program, "odd")
    assert place % 2
    script = f"""
    trace watch:{place:#x}:8:x /execname == program/ {{ n[args.addr] += 1 }}
    trace_end {{ for (where, times in pairs(n)) {{ print(where, times) }} }}
    """
    assert trace(script, [str(program), "30"], tier=tier).lines == [f"{place}\t30"]

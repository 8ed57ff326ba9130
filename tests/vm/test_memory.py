"""Memory: garbage never counts, growth always does, and what is counted is what is held."""

from __future__ import annotations

import gc
import tracemalloc

import pytest
from made_machine import delivered, made, printed, told

from vm.aggregate import Keeping, Stats
from vm.fault import Fault
from vm.limits import Limits
from vm.memory import BOX_BYTES, CLOSURE_BYTES, STATS_BYTES, Account, reachable_bytes, readable
from vm.values import ENTRY_BYTES, TABLE_BYTES, EventValue, Iterator, Stack, Table, make_key

SMALL = Limits(memory_bytes=1 << 20)
FULL = "memory: out of memory: the script holds more than 1 MiB\n"

GROWTH = [
    "i = 0 while (true) { i += 1 t = {i, prev = t} }",
    "s = {} i = 0 while (true) { i += 1 s[i] = string.rep('x', 100) .. i }",
    "s = {} i = 0 while (true) { i += 1 s['some longer key ' .. i] = 1 }",
    "s = {} i = 0 while (true) { i += 1 s[i, 'x', i] = 1 }",
    "f = nil while (true) { var g = f f = function () { return g } }",
    "s = {} i = 0 while (true) { i += 1 s[i] <<< i }",
    "s = {} for (i = 1, 16000) { s[i] <<< i s[i] <<< i * 2 s[i] <<< i * 4 } hist(s)",
    "s = 'x' t = {} i = 0 while (true) { i += 1 t[i] = string.rep('x', 1000) }",
    "function f(n) { var t = {n, n, n} f(n + 1) return t } f(0)",
    "function f(n, ...) { f(n + 1, {}, ...) } f(0)",
]


@pytest.mark.parametrize("script", GROWTH, ids=range(len(GROWTH)))
def test_growth_ends(script: str) -> None:
    assert told(script, SMALL._replace(call_depth=4000)) == FULL


GARBAGE = [
    "for (i = 1, 20000) { var t = {i, i, i} }",
    "for (i = 1, 20000) { s = string.rep('x', 500) }",
    "for (i = 1, 20000) { f = function () { return i } }",
    "for (i = 1, 20000) { s = nil s <<< i }",
    "t = {} for (i = 1, 20000) { t[i] = i t[i - 10] = nil }",
    "t = {} for (i = 1, 20000) { t[i % 10] = string.rep('x', 200) }",
    "t = {} for (i = 1, 20) { for (j = 1, 1000) { t[j] = {} } delete(t) }",
    "for (i = 1, 300) { for (k, v in pairs({1, 2, 3})) { var u = {k, v} } }",
    "function f() { var t = {f} t[2] = t } for (i = 1, 10000) { f() }",
]


@pytest.mark.parametrize("script", GARBAGE, ids=range(len(GARBAGE)))
def test_garbage_does_not_count(script: str) -> None:
    assert told(f"{script} print('done')", SMALL) == "done\n"


def test_what_trace_end_needs_is_there_after_the_fault() -> None:
    machine = made("t = {} trace_end { print(len(t) > 0) } i = 0 while (true) { i += 1 t[i] = {} }", SMALL)
    with pytest.raises(Fault) as caught:
        machine.run_main()
    assert caught.value.kind == "memory" and caught.value.frames
    machine.run_handler(0, "trace_end")
    assert printed(machine) == "true\n"


def test_a_census_sees_every_place() -> None:
    """Globals, upvalues, registers of calls in progress, loops under way, handlers."""
    script = """
        function text(c) { return string.rep(c, 100000) }
        g = text('a')
        var captured = text('b')
        function keep() { return captured }
        handlers = 0
        trace a:b { handlers += len(captured) }
        function deep() {
            var mine = text('c')
            for (k, v in pairs({text('d')})) { census() }
            return mine
        }
        deep()
    """
    machine = made(script.replace("census()", "tostring(nil)"))
    held = []

    def census(depth: int, *_: object) -> object:
        machine.account.take_census()
        held.append(machine.account.held)
        return None

    machine.names[f"f{machine.program.constants.index(b'tostring')}"] = census
    machine.run_main()
    assert len(held) == 1 and 400_000 < held[0] < 410_000


def test_a_census_of_handlers() -> None:
    machine = made(
        "function make(n) { var s = string.rep('x', n) return function () { return s } } kdebug.probe('x', make(5000))"
    )
    machine.run_main()
    machine.account.take_census()
    assert 5000 < machine.account.held < 7000


def test_strings_of_events_count_when_they_are_kept() -> None:
    machine = made("t = {} trace a:b { t[0] = execname t[pid] = execname }", SMALL)
    with pytest.raises(Fault, match="out of memory"):
        delivered(machine, [{"pid": n, "execname": b"%d" % n + b"x" * 4000} for n in range(400)])


def test_sizes() -> None:
    account = Account(Limits(), lambda: ())
    inner, outer = Table(account), Table(account)
    text = b"x" * 50
    inner.put(1, 2)
    outer.put(text, inner)
    outer.put(2, inner)
    outer.put(3, text)
    both = 2 * TABLE_BYTES + 4 * ENTRY_BYTES
    assert reachable_bytes([outer]) == reachable_bytes([outer, inner, text, 5, None, True]) == both + 50
    stats = Stats(Keeping(True, ()))
    stats.add(5)
    assert reachable_bytes([stats]) == STATS_BYTES + 100
    assert reachable_bytes([make_key((1, b"abc"))]) == 64 + 2 * 48 + 3
    assert reachable_bytes([Stack((1, 2, 3))]) == 128 + 120
    assert reachable_bytes([Iterator([(1, b"x" * 10)])]) == ENTRY_BYTES + 10
    assert reachable_bytes([iter([(1, b"x" * 10), (2, 3)])]) == 2 * ENTRY_BYTES + 10
    assert reachable_bytes([EventValue(None)]) == 0  # type: ignore[arg-type]
    assert reachable_bytes([account]) == 0
    assert reachable_bytes([(b"xyz", 1)]) == 64 + 2 * 48 + 3


def test_closures_share_boxes() -> None:
    box: list[object] = [b"x" * 10]

    def made_over(u0: list[object]) -> object:
        return lambda depth: u0

    assert reachable_bytes([made_over(box), made_over(box)]) == 2 * CLOSURE_BYTES + BOX_BYTES + 10


def test_python_takes_no_more_than_is_counted() -> None:
    """The sizes are upper bounds: Python's own count of what a script has made is below that of the census."""
    script = """
        t = {} f = {}
        for (i = 1, 3000) {
            t[i] = {i, i + 100000}
            t['key number ' .. i] = 'value number ' .. i
            t[i, 'x'] = function () { return i }
        }
    """
    machine = made(script)
    gc.collect()
    tracemalloc.start()
    machine.run_main()
    gc.collect()
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    machine.account.take_census()
    assert taken < machine.account.held < 4 * taken


def test_how_limits_are_told() -> None:
    assert [readable(size) for size in (1 << 30, 256 << 20, 4096, 100, 5000)] == [
        "1 GiB",
        "256 MiB",
        "4 KiB",
        "100 bytes",
        "5000 bytes",
    ]


def test_a_script_near_its_limit_still_moves() -> None:
    account = Account(Limits(memory_bytes=1 << 20), lambda: [b"x" * ((1 << 20) - 100)])
    account.charge((1 << 20) + 1 - 100)
    before = account.held
    counts = []
    for _ in range(1000):
        account.charge(30)
        counts.append(account.charged)
    assert before == 0 and account.allowance == (1 << 20) // 32

"""Limits: each is exact, ends what it must end soon, and is told by its message."""

from __future__ import annotations

import time

import pytest
from made_machine import delivered, made, printed, told

from vm.fault import Exit, Fault
from vm.limits import FLAGS, MAX_CALL_DEPTH, MAX_CALLBACKS, MIN_CALLS, Limits


def test_every_limit_has_a_flag() -> None:
    assert sorted(flag.field for flag in FLAGS) == sorted(Limits._fields)
    for flag in FLAGS:
        assert flag.minimum <= getattr(Limits(), flag.field) <= flag.maximum


@pytest.mark.parametrize(
    "loop",
    [
        "for (i = 1, {}) {{ }}",
        "var i = 0 while (i < {}) {{ i += 1 }}",
        "var i = 0 repeat {{ i += 1 }} until (i == {})",
        "for (i = 0; i < {}; i += 1) {{ }}",
    ],
)
def test_loop_rounds(loop: str) -> None:
    """The rounds are those that go back; the last round of some loops does not."""
    assert told(loop.format(100) + " print('done')", Limits(main_rounds=100)) == "done\n"
    assert told(loop.format(102), Limits(main_rounds=100)) == "loop: loop execute count exceed max limit\n"


def test_rounds_of_a_run_add_up_across_calls() -> None:
    script = "function f() { for (i = 1, 11) { } } for (i = 1, 10) { f() } print('done')"
    assert told(script, Limits(main_rounds=109)) == "done\n"
    assert told(script, Limits(main_rounds=108)) == "loop: loop execute count exceed max limit\n"


def test_rounds_over_tables_and_functions() -> None:
    script = "var t = {} for (i = 1, 50) { t[i] = i } for (k, v in pairs(t)) { }"
    assert told(script, Limits(main_rounds=99)) == ""
    assert told(script, Limits(main_rounds=98)).startswith("loop:")
    assert told("for (x in function () { return 1 }) { }", Limits(main_rounds=1000)).startswith("loop:")


def test_handlers_have_their_own_limit() -> None:
    machine = made("trace a:b { while (true) { } }", Limits(handler_rounds=1000))
    with pytest.raises(Fault, match="loop execute count exceed max limit") as caught:
        delivered(machine, [{}])
    assert caught.value.kind == "loop" and len(caught.value.frames) == 1


def test_the_default_limit_of_a_handler() -> None:
    machine = made("trace a:b { for (i = 1, 100001) { } } trace c:d { for (i = 1, 100002) { } }")
    machine.run_main()
    from made_machine import Event

    event = Event()
    machine.deliver([(1, 0, {})], machine.bind([(event, [0])], machine.probes))
    with pytest.raises(Fault, match="loop execute count"):
        machine.deliver([(1, 0, {})], machine.bind([(event, [1])], machine.probes))


DEPTH = "function f(n) {{ if (n == 0) {{ return 0 }} return 1 + f(n - 1) }} print(f({}))"


def test_call_depth_is_exact() -> None:
    """The main chunk is the first call."""
    assert told(DEPTH.format(998)) == "998\n"
    assert told(DEPTH.format(999)) == "depth: stack overflow\n"
    assert told(DEPTH.format(8), Limits(call_depth=10)) == "8\n"
    assert told(DEPTH.format(9), Limits(call_depth=10)) == "depth: stack overflow\n"


@pytest.mark.parametrize(
    "script",
    [
        "function f(n) { return 1 + f(n) } f(0)",
        "function f(n) { return g(n) } function g(n) { var x = f(n) return x } f(0)",
        "function f(...) { var x = f(1, ...) return x } f(0)",
        "t = {1, 2, 3} function f(a, b) { sort_pairs(t, f) return true } sort_pairs(t, f)",
        "function f() { for (x in f) { } } f()",
        "function f() { for (x in function () { return f() }) { } } f()",
    ],
)
@pytest.mark.parametrize("depth", [1000, MAX_CALL_DEPTH])
def test_endless_recursion(script: str, depth: int) -> None:
    """Whatever way it goes, Python's own stack holds."""
    assert told(script, Limits(call_depth=depth)) == "depth: stack overflow\n"


def test_how_deep_builtins_call_back() -> None:
    script = """
        n = 0
        function f(a, b) { n += 1 if (n < %d) { sort_pairs({1, 2}, f) } return a < b }
        sort_pairs({1, 2}, f) print(n)
    """
    assert told(script % MAX_CALLBACKS) == f"{MAX_CALLBACKS}\n"
    assert told(script % (MAX_CALLBACKS + 1)) == "depth: stack overflow\n"
    assert told(f"{script % MAX_CALLBACKS} n = 0 sort_pairs({{1, 2}}, f) print(n)") == f"{MAX_CALLBACKS}\n" * 2


def test_a_million_tail_calls() -> None:
    machine = made("function f(n) { if (n == 0) { return 7 } return f(n - 1) } trace a:b { print(f(1000000)) }")
    delivered(machine, [{}])
    assert printed(machine) == "7\n"


def test_recursion_that_branches_ends() -> None:
    machine = made("function f(n) { if (n > 0) { f(n - 1) f(n - 1) } } trace a:b { f(40) }")
    with pytest.raises(Fault, match="call count exceed max limit") as caught:
        delivered(machine, [{}])
    assert caught.value.kind == "calls"


def test_endless_tail_calls_end() -> None:
    machine = made("function f() { return f() } trace a:b { f() }", Limits(handler_rounds=MIN_CALLS + 5))
    with pytest.raises(Fault, match="call count exceed max limit"):
        delivered(machine, [{}])


def test_strings() -> None:
    limits = Limits(string_bytes=1000)
    assert told("s = 'x' while (len(s) < 500) { s = s .. s } print(len(s))", limits) == "512\n"
    assert told("s = 'x' while (true) { s = s .. s }", limits) == "string: a string longer than 1000 bytes\n"
    assert told("print(len(string.rep('x', 1000)))", limits) == "1000\n"
    assert told("print(string.rep('x', 1001))", limits).startswith("string: ")


def test_values_behind_an_ellipsis() -> None:
    script = "function f(n, ...) { if (n == 0) { return ... } return f(n - 1, n, ...) } var t = {f(%d)} print(len(t))"
    assert told(script % 4096) == "4096\n"
    assert told(script % 4098) == "argument: more than 4096 values behind `...`\n"


def test_table_entries() -> None:
    machine = made("t = {} for (i = 1, 20) { t[i] = i t[1] += 1 } print(len(t), t[1], t[11])", Limits(table_entries=10))
    machine.run_main()
    assert printed(machine) == "10\t21\tnil\n" and machine.account.dropped_keys == 10


# -- interruption -----------------------------------------------------------------------------


@pytest.mark.parametrize("script", ["while (true) { }", "function f() { return f() } f()"])
def test_interrupting_the_main_chunk(script: str) -> None:
    machine = made(f"print('begun') stop() {script}".replace("stop()", "tostring(1)"))
    interrupting(machine)
    began = time.process_time()
    with pytest.raises(Exit) as caught:
        machine.run_main()
    assert caught.value.status == 0 and time.process_time() - began < 5
    assert printed(machine) == "begun\n"


def interrupting(machine: object) -> None:
    """Let the machine be interrupted, as by a signal, when it calls tostring."""
    names = machine.names  # type: ignore[attr-defined]
    place = machine.program.constants.index(b"tostring")  # type: ignore[attr-defined]
    names[f"f{place}"] = lambda depth, *_: machine.interrupt()  # type: ignore[attr-defined]


def test_a_handler_is_not_interrupted_but_ends_by_its_limit() -> None:
    machine = made("trace a:b { tostring(1) for (i = 1, 10) { } print(pid) }")
    interrupting(machine)
    delivered(machine, [{"pid": 1}, {"pid": 2}])
    assert printed(machine) == "1\n2\n"
    assert not machine.interrupted


def test_what_runs_after_an_interruption_is_whole() -> None:
    machine = made(
        "trace trace_end { for (i = 1, 10) { } print('end') } tostring(1) while (true) { }".replace(
            "trace trace_end", "trace_end"
        )
    )
    interrupting(machine)
    with pytest.raises(Exit):
        machine.run_main()
    machine.run_handler(0, "trace_end")
    assert printed(machine) == "end\n"

"""The machine: calls, closures, loops, events and faults, seen from scripts."""

from __future__ import annotations

import pytest
from assembler import program
from made_machine import Event, delivered, made, printed, records, told

from vm.fault import Exit, Fault, Frame
from vm.idle import IdleEvent
from vm.limits import Limits
from vm.program import Span
from vm.values import Address

SCRIPTS = [
    ("function f(a, b) { return a, b, 3 } print(f(1, 2)) print((f(1, 2))) print(f(1), 9)", "1\t2\t3\n1\n1\t9\n"),
    ("function f() { } print(f()) print((f())) var x = f() print(x)", "\nnil\nnil\n"),
    ("function f(...) { var a, b = ... return b, a, ... } print(f(1, 2, 3)) print(f())", "2\t1\t1\t2\t3\nnil\tnil\n"),
    ("function f(...) { return ... } print(f()) print((f(7))) var a, b, c = f(1, 2) print(a, b, c)", "\n7\n1\t2\tnil\n"),
    ("function f(...) { var t = {0, ...} return len(t), t[3] } print(f(5, 6))", "3\t6\n"),
    ("function f(a) { return print(a) } f(3) print(f(4))", "3\n4\n\n"),
    ("function f(n) { if (n == 0) { return 1, 2 } return f(n - 1) } print(f(100000))", "1\t2\n"),
    ("function even(n) { if (n == 0) { return true } return odd(n - 1) } "
     "function odd(n) { if (n == 0) { return false } return even(n - 1) } print(even(10001))", "false\n"),
    ("function f(...) { return print(...) } f(1, 2)", "1\t2\n"),
    ("var n = 0 function up() { n += 1 return n } up() up() print(n, up())", "2\t3\n"),
    ("var fs = {} for (i = 1, 3) { fs[i] = function () { i += 10 return i } } print(fs[1](), fs[1](), fs[3]())",
     "11\t21\t13\n"),
    ("function make() { var n = 0 return function () { return function () { n += 1 return n } } } "
     "var inner = make()() inner() print(inner())", "2\n"),
    ("for (k, v in pairs({a = 1})) { print(k, v) } for (k in pairs({7})) { print(k) }", "a\t1\n1\n"),
    ("var t = {} t[1, 'x'] = 2 t[true, 3] += 5 for (a, b, v in pairs(t)) { print(a, b, v) } for (k, v in pairs(t)) "
     "{ print(k, v) }", "1\tx\t2\ntrue\t3\t5\n1, x\t2\ntrue, 3\t5\n"),
    ("function upto(n, i) { if (i < n) { return i + 1, i * 10 } } for (i, x in upto, 3, 0) { print(i, x) }",
     "1\t0\n2\t10\n3\t20\n"),
    ("function once(s, c) { if (c == nil) { return 5 } } for (a, b, c in once) { print(a, b, c) }", "5\tnil\tnil\n"),
    ("for (i = 3, 1, -1) { print(i) } for (i = 1, 0) { print('never') }", "3\n2\n1\n"),
    ("for (i = 0x7ffffffffffffffe, 0x7fffffffffffffff) { print(i) }", "9223372036854775806\n9223372036854775807\n"),
    ("print('a' .. 1 .. -2, 1 .. 2)", "a1-2\t12\n"),
    ("print(`vfs_read` == 0xffffffff81000000, 1 .. `vfs_read`)", "true\t1-2130706432\n"),
    ("t = {} t.n -= 3 t.n += 1 t[nil == nil] += 4 print(t.n, t[true], t.missing)", "-2\t4\tnil\n"),
    ("x += 1 print(x) y = 1 y += 1 print(y)", "nil\n2\n"),
    ("print(pid, args.x, curtask.pid, arg0, probename)", "nil\tnil\tnil\tnil\tnil\n"),
    ("print(string.upper('a'), string) string = 5 print(string)", None),
    ("print(arg[0], arg[1], arg.flag, len(arg))", "s.kp\tone\tyes\t3\n"),
    ("s <<< 3 s <<< 5 t = {} t['k'] <<< 2 t['k'] <<< 4 print(count(s), sum(s), avg(t.k))", "2\t8\t3\n"),
    ("print(nil || 1, false && 1, !nil, !0)", "1\tfalse\ttrue\tfalse\n"),
]  # fmt: skip


@pytest.mark.parametrize("script, expected", SCRIPTS, ids=range(len(SCRIPTS)))
def test_scripts(script: str, expected: str) -> None:
    text = told(script, arguments={0: b"s.kp", 1: b"one", b"flag": b"yes"})
    assert text == ("A\ttable\n5\n" if expected is None else expected)


FAULTS = [
    ("var t = {} print(t + 1)", "type: cannot add a table and an integer"),
    ("print(1 / 0)", "divide: divide 0"),
    ("var x = 0 print(5 % x)", "divide: divide 0"),
    ("x = nil x()", "type: cannot call nil"),
    ("x = {} function f() { return x(1) } f()", "type: cannot call a table"),
    ("x = nil print(x.y)", "type: cannot index nil"),
    ("x = 5 x.y = 1", "type: cannot assign to an entry of an integer"),
    ("t = {} t[nil] = 1", "key: nil cannot be a key"),
    ("t = {} t[1, x] = 1", "key: nil cannot be part of a key"),
    ("for (i = 1, 5, 0) { }", "step: the step of a for loop is 0"),
    ("for (i = 1, 'x') { }", "type: a for loop counts with integers, not with a string"),
    ("for (k, v in {}) { }", "type: cannot loop over a table"),
    ("print(1 < 'a')", "type: cannot compare an integer and a string"),
    ("print('a' .. nil)", "type: cannot join a string and nil"),
    ("print(`no_such_symbol`)", "symbol: no kernel symbol `no_such_symbol`"),
    ("s = 5 s <<< 1", "type: cannot add a sample to an integer"),
    ("t = {} t.k <<< 'x'", None),
    ("sort_pairs({1, 2}, function () { var f = nil return f() })", "type: cannot call nil"),
]


@pytest.mark.parametrize("script, expected", FAULTS, ids=range(len(FAULTS)))
def test_faults(script: str, expected: str) -> None:
    text = told(script)
    assert text.startswith("type:") if expected is None else text == expected + "\n"


def test_frames_say_where() -> None:
    machine = made(
        "function inner(x) {\n  return 1 + x.y\n}\nfunction outer() {\n  var r = inner(nil)\n  return r\n}\nouter()"
    )
    with pytest.raises(Fault) as caught:
        machine.run_main()
    inner, outer, main = caught.value.frames
    assert (inner.function, inner.span.line, inner.span.column) == ("inner", 2, 14)
    assert (outer.function, outer.span.line, outer.span.column) == ("outer", 5, 11)
    assert main.span.line == 8


def test_frames_go_through_builtins() -> None:
    machine = made("function before(a, b) {\n  return a.x\n}\nsort_pairs({1, 2}, before)")
    with pytest.raises(Fault) as caught:
        machine.run_main()
    assert [frame.span.line for frame in caught.value.frames] == [2, 4]


def test_a_builtin_in_a_tail_call_has_a_place() -> None:
    machine = made("function f() {\n  return len(nil)\n}\nf()")
    with pytest.raises(Fault) as caught:
        machine.run_main()
    assert caught.value.frames[0] == Frame("f", Span(2, 10, 2, 13))


def test_exit() -> None:
    assert told("print(1) exit(3) print(2)") == "1\nexit 3\n"


# -- probes and events ------------------------------------------------------------------------


def test_probes_are_kept_with_their_places() -> None:
    machine = made('var n = 0\ntrace sched:* /pid == 1/ { n += 1 }\ntick-1s { }\ntrace "x:y" function (e) { }')
    machine.run_main()
    assert [(probe.event, probe.filter, probe.takes_event) for probe in machine.probes] == [
        ("sched:*", "pid == 1", False),
        ("tick-1s", None, False),
        ("x:y", None, True),
    ]
    assert [probe.handler for probe in machine.probes] == [0, 1, 2]
    assert [probe.span.line for probe in machine.probes] == [2, 3, 4]
    assert [machine.function_number(handler) for handler in machine.handlers] == [
        probe.function for probe in machine.probes
    ]
    assert machine.function_number(print) is None and machine.function_number(told) is None


def test_probes_in_the_main_chunk_only() -> None:
    machine = made("trace a:b {\n  kdebug.probe('tp:x:y', function () { })\n}")
    with pytest.raises(Fault, match=r"^a probe can be set in the main chunk only$") as caught:
        delivered(machine, [{}])
    assert caught.value.kind == "probe" and caught.value.frames[0].span.line == 2


def test_a_handler_is_a_function_of_the_script() -> None:
    machine = made(program("BUILTIN 0 ='print'\nPROBE 0 ='a:b' =nil\nRETURN 0 0"))
    with pytest.raises(Fault, match=r"^a handler must be a function of the script, this is a function$"):
        machine.run_main()


def test_event_values() -> None:
    machine = made(
        "trace a:b { print(probename, pid, execname, args.fd, args.file.inode, curtask.parent.pid, nsecs, arg3, argstr) }"
    )
    delivered(machine, [{"pid": 7, "execname": b"sh", "fd": 3, "file.inode": 9}])
    assert printed(machine) == "made_up\t7\tsh\t3\t9\ttask parent.pid\t10\tnil\ttext of the event\n"


def test_older_handlers_are_given_the_event() -> None:
    machine = made('kdebug.probe("tp:a", function (e) { print(e.name, e.tostring()) })')
    delivered(machine, [{}, {"argstr": b"second"}])
    assert printed(machine) == "made_up\ttext of the event\n\nmade_up\tsecond\n\n"


def test_events_of_several_points() -> None:
    machine = made("trace a:b { print(1, probename, pid) } trace c:d { print(2, probename, pid) }")
    machine.run_main()
    one, two = Event(b"one"), Event(b"two")
    bound = machine.bind([(one, [0, 1]), (two, [1])], machine.probes)
    machine.deliver([(1, 1, {"pid": 5}), (2, 0, {"pid": 6}), (3, 1, {"pid": 7})], bound)
    assert printed(machine) == "2\ttwo\t5\n1\tone\t6\n2\tone\t6\n2\ttwo\t7\n"
    assert machine.event is None and isinstance(machine.names["E"], IdleEvent)


def test_time_is_the_events_in_a_handler() -> None:
    machine = made(
        "trace a:b { print(gettimeofday_ns() - 1700000000000000000, nsecs) } tick-1s { print(nsecs, probename) }"
    )
    machine.run_main()
    bound = machine.bind([(Event(), [0])], machine.probes)
    machine.deliver([(77, 0, {})], bound)
    machine.run_handler(1, "tick-1s")
    assert printed(machine) == "77\t77\n5000000123\ttick-1s\n"
    assert machine.now_ns() == 5_000_000_123


def test_an_event_without_a_time_has_the_clocks() -> None:
    machine = made("")
    machine.event = IdleEvent(machine.host)
    machine.event.time_ns = 5
    assert machine.now_ns() == 5
    machine.event = Event()
    machine.event.record = (b"odd",)  # type: ignore[assignment]
    with pytest.raises(AssertionError):
        machine.now_ns()


def test_a_fault_ends_delivery() -> None:
    machine = made("n = 0 trace a:b { n += 1 print(n) if (n == 2) { n() } }")
    with pytest.raises(Fault) as caught:
        delivered(machine, [{}] * 5)
    assert printed(machine) == "1\n2\n"
    assert caught.value.frames[0].span.column == 49
    assert machine.event is None


def test_exit_ends_delivery() -> None:
    machine = made("n = 0 trace a:b { n += 1 if (n == 3) { exit(n) } }")
    with pytest.raises(Exit) as caught:
        delivered(machine, [{}] * 5)
    assert caught.value.status == 3 and machine.names["g" + str(machine.program.constants.index(b"n"))] == 3


def test_a_tail_call_at_the_end_of_a_handler_is_made() -> None:
    machine = made(
        "function f(x) { print('f', x) return g(x) } function g(x) { print('g', x) } trace a:b { return f(pid) }"
    )
    delivered(machine, [{"pid": 4}])
    assert printed(machine) == "f\t4\ng\t4\n"


def test_rounds_are_renewed_for_each_event() -> None:
    machine = made("trace a:b { for (i = 1, 60) { } print(pid) }", Limits(handler_rounds=100))
    delivered(machine, [{"pid": n} for n in range(3)])
    assert printed(machine) == "0\n1\n2\n"


def test_an_address_joins_as_its_symbol() -> None:
    machine = made("")
    assert machine.concatenate(b"at ", Address(16)) == b"at k_10+0x1"


def test_the_idle_event_knows_nothing() -> None:
    idle = IdleEvent(made("").host)
    assert (idle.field("x"), idle.task("x"), idle.stack("kernel", 1, 0), idle.state("in_interrupt")) == (None,) * 4
    with pytest.raises(LookupError):
        idle.memory("user", "string", 1, 1)


def test_python_running_out_is_told_as_a_limit() -> None:
    machine = made("")
    assert machine.located(RecursionError()).message == "stack overflow"
    assert machine.located(MemoryError()).kind == "memory"


def test_records_are_ten_ns_apart() -> None:
    assert [record[0] for record in records([{}, {}], 5)] == [5, 15]

"""The run loop: order, timers, every way tracing can end, and what is told at the end."""

from __future__ import annotations

from typing import Dict, List, Tuple

import pytest
from fed_run import REPLAY, SECOND_NS, Recorded, at, executed
from made_machine import Event, Kept, MadeUpHostWithSymbols, made, printed

from vm.diagnostic import Refusal
from vm.event import Loss, Probe
from vm.fault import Exit, Fault, Frame
from vm.limits import Limits
from vm.machine import Machine
from vm.program import Program, Span
from vm.run import (
    MAX_CALLERS,
    PATIENCE_NS,
    PIECE_RECORDS,
    POLL_NS,
    SIGNAL_PATIENCE_NS,
    TABLE_FULL,
    TOO_LATE,
    Clock,
    Outcome,
    Run,
    RunOptions,
    fault_text,
    wait_ns,
)
from vm.timers import SHORTEST_NS, Schedule, period_ns

# -- order ------------------------------------------------------------------------------------


def test_a_script_without_probes_ends_after_its_main_chunk() -> None:
    source = Recorded([])
    assert executed("print('main')", source) == ("main\n", Outcome(0, ()), [])
    assert not source.attached and not source.closed


def test_begin_and_end_alone_need_no_events() -> None:
    script = "trace_end { print('end', probename) } trace_begin { print('begin', probename) } print('main')"
    assert executed(script, None)[:2] == ("main\nbegin\ttrace_begin\nend\ttrace_end\n", Outcome(0, ()))


def test_the_order_of_a_run() -> None:
    order: List[str] = []
    source = Recorded([(at(5), 10)])
    machine = made(
        "print('main') trace_begin { print('begin') } trace a:b { print('event') } trace_end { print('end') }"
    )
    source.on_poll = lambda number: order.append(f"poll {printed(machine)!r}")
    options = RunOptions(live=False, start=lambda: order.append(f"start {len(source.attached)}"))
    assert Run(machine, source, options).execute().status == 0
    assert order == ["start 1", "poll 'main\\nbegin\\n'"]
    assert printed(machine) == "main\nbegin\nevent\nend\n"
    assert isinstance(machine.output, Kept) and machine.output.flushed == len("main\nbegin\n")
    assert machine.output.ticks


def test_only_events_are_attached() -> None:
    source = Recorded([([], 1)])
    executed("trace a:b { } trace_begin { } tick-1s { } profile-99hz { } trace_end { } trace c:d, e:f { }", source)
    assert [probe.event for probe in source.attached] == ["a:b", "profile-99hz", "c:d", "e:f"]


def test_points_that_come_later() -> None:
    source = Recorded([(at(1), 5), (at(6) + at(7, point=1), 10)])

    def more(number: int) -> None:
        if number == 2:
            source.points.append((Event(b"late"), [0]))

    source.on_poll = more
    assert executed("trace a:b { print(nsecs, probename) }", source)[0] == "1\ta:b\n6\ta:b\n7\tlate\n"


# -- ticks ------------------------------------------------------------------------------------


def test_time_begins_when_events_count() -> None:
    """Which may be before the source had attached."""
    source = Recorded([(at(2 * SECOND_NS), 2 * SECOND_NS), ([], 9 * SECOND_NS)], begin_ns=SECOND_NS)
    options = RunOptions(duration_ns=3 * SECOND_NS, live=False, live_ns=lambda: SECOND_NS // 2)
    text, _, _ = executed("tick-1s { print(nsecs) } trace_end { print('end') }  trace a:b { }", source, options)
    assert text == "1500000000\n2500000000\n3500000000\nend\n"


def test_ticks_stand_among_events_by_time() -> None:
    second = SECOND_NS
    source = Recorded([(at(5, second, second + 1), 2 * second - 1), (at(2 * second + 5), 4 * second)])
    script = "trace a:b { print('event', nsecs) } tick-1s { print(probename, nsecs) }"
    text, outcome, _ = executed(script, source)
    assert outcome.status == 0
    assert text.splitlines() == [
        "event\t5",
        f"event\t{second}",
        f"tick-1s\t{second}",
        f"event\t{second + 1}",
        f"tick-1s\t{2 * second}",
        f"event\t{2 * second + 5}",
        f"tick-1s\t{3 * second}",
        f"tick-1s\t{4 * second}",
    ]


def test_a_replay_has_every_tick_however_it_is_cut() -> None:
    script = "n = 0 trace a:b { n += 1 } tick-100ms { print(nsecs, n) }"
    times = [n * 37_000_000 for n in range(1, 60)]
    whole = executed(script, Recorded([(at(*times), 3 * SECOND_NS)]))[0]
    pieces = [(at(*times[n : n + 7]), times[min(n + 7, 59) - 1]) for n in range(0, 59, 7)]
    assert executed(script, Recorded([*pieces, ([], 3 * SECOND_NS)]))[0] == whole
    assert len(whole.splitlines()) == 30


def test_several_ticks() -> None:
    """Of ticks that are due together, the one that was set first is first."""
    source = Recorded([([], 2 * SECOND_NS)])
    script = "trace a:b { } tick-1s { print(1) } tick-2s { print(2) } tick-500ms { print(5) }"
    assert executed(script, source)[0].split() == ["5", "1", "5", "5", "1", "2", "5"]


def test_what_is_counted_elsewhere_is_settled_before_it_is_looked_at() -> None:
    source = Recorded([([], SECOND_NS), ([], 2 * SECOND_NS + 5)])
    executed("trace a:b { } tick-1s { } trace_end { }", source)
    assert source.settled == [SECOND_NS, 2 * SECOND_NS + 5, 2 * SECOND_NS + 5]


def test_a_tick_that_cannot_keep_up_fires_once_in_its_phase() -> None:
    schedule = Schedule([probe("tick-1s")], 0)
    fired = []
    for now in (1.0, 2.1, 7.3, 7.3, 8.0):
        now_ns = int(now * SECOND_NS)
        due = schedule.next_ns()
        if due is not None and due <= now_ns:
            schedule.take(now_ns)
            fired.append((now, due // SECOND_NS))
    assert fired == [(1.0, 1), (2.1, 2), (7.3, 3), (7.3, 7), (8.0, 8)]


def test_late_ticks_of_a_live_run_are_not_made_up_for() -> None:
    source = Recorded([([], 10 * SECOND_NS), ([], 10 * SECOND_NS + 5)])
    text, _, _ = executed("n = 0 trace a:b { } tick-1s { n += 1 } trace_end { print(n) }", source, RunOptions())
    assert text == "2\n"


def probe(event: str) -> Probe:
    return Probe(event, None, 0, 1, Span(1, 1, 1, 1))


@pytest.mark.parametrize(
    "text, expected_ns",
    [
        ("tick-5", 5 * SECOND_NS),
        ("tick-5s", 5 * SECOND_NS),
        ("tick-5sec", 5 * SECOND_NS),
        ("tick-10ms", 10_000_000),
        ("tick-10msec", 10_000_000),
        ("tick-20us", 20_000),
        ("tick-20usec", 20_000),
        ("tick-12345ns", 12_345),
        ("profile-99hz", 10_101_010),
        ("tick-1hz", SECOND_NS),
    ],
)
def test_timers(text: str, expected_ns: int) -> None:
    assert period_ns(text) == expected_ns


@pytest.mark.parametrize(
    "text, message",
    [
        ("tick-", "is no timer"),
        ("tick-s", "is no timer"),
        ("tick-1234567890123456789s", "is no timer"),
        ("tick-5min", "`min` is no unit of time: there are s, sec, ms, msec, us, usec, ns, hz"),
        ("tick-0s", "a number above 0"),
        ("tick-1ns", f"cannot be shorter than {SHORTEST_NS // 1000} us"),
        ("profile-1000000hz", "cannot be shorter than"),
        ("tick-9999999999hz", "cannot be shorter than"),
    ],
)
def test_what_is_no_timer(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        period_ns(text)


def test_wrong_timers_are_refused_with_their_places() -> None:
    source = Recorded([])
    machine = made("tick-1s { }\ntick-5ns { }\nkdebug.probe('tick-x', function () { })")
    with pytest.raises(Refusal) as caught:
        Run(machine, source).execute()
    assert [diagnostic.span and diagnostic.span.line for diagnostic in caught.value.diagnostics] == [2, 3]
    assert not source.attached


# -- how tracing ends -------------------------------------------------------------------------

ENDING = "trace a:b { print('event', nsecs) %s } trace_end { print('end') }"


def test_the_end_of_a_recording() -> None:
    assert executed(ENDING % "", Recorded([(at(1), 2), (at(3), 4)]))[0] == "event\t1\nevent\t3\nend\n"


def test_exit_in_a_handler_ends_at_once() -> None:
    text, outcome, reports = executed(ENDING % "exit(3)", Recorded([(at(1, 2), 4)]))
    assert (text, outcome.status, reports) == ("event\t1\nend\n", 3, [])


def test_a_fault_in_a_handler_ends_tracing() -> None:
    text, outcome, reports = executed(ENDING % "var n = nsecs n.x = 1", Recorded([(at(1, 2), 4)]))
    assert (text, outcome.status) == ("event\t1\nend\n", 1)
    assert len(reports) == 1 and reports[0].startswith("test.kp:1:")
    assert "cannot assign to an entry of an integer" in reports[0]


@pytest.mark.parametrize(
    "script, expected",
    [
        ("tick-1s { print(1) exit(2) } trace a:b { } trace_end { print('end') }", ("1\nend\n", 2, 0)),
        ("tick-1s { print(1) nil_() } trace a:b { } trace_end { print('end') } nil_ = 5", ("1\nend\n", 1, 1)),
        ("trace_begin { exit(4) } trace a:b { } trace_end { print('end') }", ("end\n", 4, 0)),
        ("trace_begin { print(1 / 0) } trace_begin { print('no') } trace_end { print('end') }", ("end\n", 1, 1)),
        ("trace_end { print('end') } print('main') exit(5)", ("main\nend\n", 5, 0)),
        ("trace_end { print('end') } print('main') print(1 / 0)", ("main\nend\n", 1, 1)),
        ("print(1 / 0)", ("", 1, 1)),
        ("trace_end { exit(3) } trace_end { print('no') }", ("", 3, 0)),
        ("trace_end { print(1 / 0) } trace_end { print('no') }", ("", 1, 1)),
        ("trace_begin { exit(3) } trace_end { print(1 / 0) }", ("", 1, 1)),
        ("trace_begin { print(1 / 0) } trace_end { exit(3) }", ("", 1, 1)),
    ],
)
def test_exits_and_faults(script: str, expected: Tuple[str, int, int]) -> None:
    text, outcome, reports = executed(script, Recorded([([], 5 * SECOND_NS)]))
    assert (text, outcome.status, len(reports)) == expected


def test_the_end_of_the_duration() -> None:
    source = Recorded([(at(1, 60), 50), (at(99, 100, 101), 200), (at(300), 400)])
    text, _, _ = executed(ENDING % "", source, RunOptions(duration_ns=100, live=False))
    assert text == "event\t1\nevent\t60\nevent\t99\nevent\t100\nend\n"
    assert len(source.timeouts) == 2


def test_ticks_end_with_the_duration() -> None:
    source = Recorded([([], 60 * SECOND_NS), ([], 61 * SECOND_NS)])
    options = RunOptions(duration_ns=3 * SECOND_NS, live=False)
    assert executed("n = 0 trace a:b { } tick-1s { n += 1 } trace_end { print(n) }", source, options)[0] == "3\n"


def test_stop_takes_what_has_fired_before() -> None:
    source = Recorded([(at(1), 10), (at(15, 25), 18), (at(19, 30), 40), (at(50), 60)])
    machine = made(ENDING % "")
    run = Run(machine, source, RunOptions())

    def stop(number: int) -> None:
        if number == 2:
            source.time_ns = 25  # stop() comes while 15 … 25 are on their way
            run.stop()

    source.on_poll = stop
    source.now_ns = lambda: 25 if run.stopping else 5  # type: ignore[method-assign]
    assert run.execute().status == 0
    assert printed(machine) == "event\t1\nevent\t15\nevent\t25\nevent\t19\nend\n"
    assert source.closed == 1


def test_stop_ends_a_replay_where_it_is() -> None:
    source = Recorded([(at(1), 10), (at(15), 20), (at(25), 30)])
    machine = made(ENDING % "")
    run = Run(machine, source, REPLAY)
    source.on_poll = lambda number: run.stop() if number == 2 else None
    run.execute()
    assert printed(machine) == "event\t1\nevent\t15\nend\n"


def test_a_source_that_never_hands_over_is_not_waited_for_for_ever() -> None:
    end_ns = 10 + 2 * SIGNAL_PATIENCE_NS
    times = [0, 10, 20, 30, end_ns, end_ns + 1]
    source = Recorded([([], 0)] * 20)
    source.now_ns = lambda: times[min(len(source.timeouts), len(times) - 1)]  # type: ignore[method-assign]
    run = Run(made(ENDING % ""), source, RunOptions())
    source.on_poll = lambda number: run.stop() if number == 1 else None
    run.execute()
    assert len(source.timeouts) == 5


@pytest.mark.parametrize("signalled", [False, True])
def test_what_handlers_cannot_take_in_time_after_the_end_is_counted(signalled: bool) -> None:
    records = at(*range(1, 1001))
    source = Recorded([(records, 2000)])
    machine = made("n = 0 trace a:b { n += 1 tostring(n) } trace_end { print(n) }")
    duration_ns = None if signalled else 3000
    run = Run(machine, source, RunOptions(duration_ns=duration_ns))
    patience_ns = SIGNAL_PATIENCE_NS if signalled else PATIENCE_NS
    handled = [0]

    def slow(*_: object) -> None:
        handled[0] += 1
        source.time_ns += patience_ns // 100
        if signalled:
            run.stop()

    source.now_ns = lambda: source.time_ns  # type: ignore[method-assign]
    machine.names[f"f{machine.program.constants.index(b'tostring')}"] = slow
    outcome = run.execute()
    (loss,) = outcome.losses
    assert loss == Loss(TOO_LATE, "a:b", 1000 - handled[0])
    assert handled[0] in range(100, 100 + 2 * PIECE_RECORDS + 1)
    assert printed(machine) == f"{handled[0]}\n"
    assert outcome.status == 0


@pytest.mark.parametrize("late", [False, True])
def test_what_was_not_even_polled_in_time_is_counted(late: bool) -> None:
    end_ns = 3000
    given_up_ns = end_ns + PATIENCE_NS + SIGNAL_PATIENCE_NS + 1
    source = Recorded([(at(1000), 2000), (at(2500), 2600), ([], end_ns)])
    source.left = {"a:b": 7}
    now_ns = lambda: given_up_ns if late and len(source.timeouts) == 2 else source.time_ns  # noqa: E731
    source.now_ns = now_ns  # type: ignore[method-assign]
    run = Run(made("trace a:b { print(nsecs) }"), source, RunOptions(duration_ns=end_ns))
    losses = run.execute().losses
    assert len(source.timeouts) == (2 if late else 3)
    # the second batch was polled, but no handler ran for it
    assert list(losses) == ([Loss(TOO_LATE, "a:b", 8)] if late else [])


def test_the_end_of_the_command() -> None:
    source = Recorded([(at(1), 2), (at(3), 4), (at(5), 6), (at(7), 8)])
    options = RunOptions(finished=lambda: len(source.timeouts) >= 2)
    assert executed(ENDING % "", source, options)[0] == "event\t1\nevent\t3\nend\n"


def test_a_command_that_has_ended_when_it_is_first_looked_at() -> None:
    """All that it did was while this did not run, and is before the end all the same."""
    source = Recorded([(at(3), 20)])
    clock_ns = [1]
    source.now_ns = lambda: clock_ns[0]  # type: ignore[method-assign]

    def finished() -> bool:
        clock_ns[0] = 10
        return True

    assert executed(ENDING % "", source, RunOptions(finished=finished))[0] == "event\t3\nend\n"


def test_stop_in_the_main_chunk() -> None:
    machine = made("trace_end { print('end') } trace a:b { } tostring(1) while (true) { }")
    source = Recorded([])
    run = Run(machine, source)
    machine.names[f"f{machine.program.constants.index(b'tostring')}"] = lambda depth, *_: run.stop()
    assert run.execute() == Outcome(0, ())
    assert printed(machine) == "end\n" and not source.attached


def test_stop_before_probes_are_live() -> None:
    machine = made("trace_end { print('end') } trace_begin { tostring(1) } trace a:b { }")
    source = Recorded([])
    run = Run(machine, source)
    machine.names[f"f{machine.program.constants.index(b'tostring')}"] = lambda depth, *_: run.stop()
    assert run.execute().status == 0
    assert printed(machine) == "end\n" and not source.attached


def test_output_that_fails_ends_the_run() -> None:
    class Broken(Kept):
        def tick(self, now_ns: int) -> None:
            raise Exit(1)

    machine = made(ENDING % "")
    machine.output = Broken()
    source = Recorded([(at(1), 2), (at(3), 4)])
    assert Run(machine, source, REPLAY).execute().status == 1
    assert len(source.timeouts) == 1 and source.closed == 1


def test_what_a_source_raises_goes_on_but_closes_it() -> None:
    source = Recorded([(at(1), 2), (at(3), 4)])

    def fail(number: int) -> None:
        raise OSError("gone")

    source.on_poll = fail
    with pytest.raises(OSError, match="gone"):
        Run(made(ENDING % ""), source).execute()
    assert source.closed == 1


def test_probes_without_events() -> None:
    with pytest.raises(Refusal) as caught:
        Run(made("var x = 1\ntrace a:b { }"), None).execute()
    assert caught.value.status == 3 and caught.value.diagnostics[0].span == Span(2, 7, 2, 10)


# -- ticks only -------------------------------------------------------------------------------


def test_a_script_of_ticks_needs_no_source() -> None:
    machine = made("n = 0 tick-20ms { n += 1 if (n == 3) { exit() } } trace_end { print(n) }")
    machine.host = RealTime()
    assert Run(machine, None).execute() == Outcome(0, ())
    assert printed(machine) == "3\n"


class RealTime(MadeUpHostWithSymbols):
    def monotonic_ns(self) -> int:
        import time

        return time.monotonic_ns()


def test_the_clock() -> None:
    clock = Clock(RealTime())
    clock.attach(())
    before = clock.now_ns()
    batch = clock.poll(2_000_000)
    assert batch.horizon_ns >= before + 2_000_000 and not batch.records and not batch.ended
    assert (tuple(clock.points), tuple(clock.losses())) == ((), ())
    clock.close()


def test_how_long_to_wait() -> None:
    assert wait_ns(0, None, None) == POLL_NS
    assert wait_ns(100, 5_000_100, None) == 5_000_000
    assert wait_ns(100, 5_000_100, 3_000_100) == 3_000_000
    assert wait_ns(100, 50, None) == 1_000_000


# -- what is told -----------------------------------------------------------------------------


def test_losses() -> None:
    source = Recorded([(at(*range(10)), 20)])
    source.lost = (Loss("ring buffer full", "sched:*", 12),)
    _, outcome, _ = executed("t = {} trace a:b { t[nsecs] = 1 }", source, limits=Limits(table_entries=4))
    assert outcome.losses == (Loss("ring buffer full", "sched:*", 12), Loss(TABLE_FULL, "t, limit of 4 entries", 6))


@pytest.mark.parametrize(
    ("script", "losses"),
    [
        (
            "t = {} u = {} for (i = 1, 5) { t[i] = 1 u[i] = 1 u[-i] = 1 }",
            {"t, limit of 3 entries": 2, "u, limit of 3 entries": 7},
        ),
        ("var t = {} trace_end { t[1] = 1 } for (i = 1, 5) { t[i] = 1 }", {"t, limit of 3 entries": 2}),
        ("function f() { var t = {} for (i = 1, 5) { t[i] = 1 } } f() f()", {"limit of 3 entries": 4}),
        ("t = {} t.in_it = {} for (i = 1, 5) { t.in_it[i] = 1 }", {"limit of 3 entries": 2}),
    ],
)
def test_the_table_is_named(script: str, losses: dict[str, int]) -> None:
    _, outcome, _ = executed(script, None, limits=Limits(table_entries=3))
    assert {loss.where: loss.events for loss in outcome.losses if loss.what == TABLE_FULL} == losses


def frames(number: int) -> Tuple[Frame, ...]:
    return tuple([Frame(f"f{n}", Span(n + 1, 3, n + 1, 5)) for n in range(number)])


def test_how_a_fault_is_told() -> None:
    program = Program("s.kp", (), (), "one\ntwo  \n")
    fault = Fault("type", "wrong", "do right")
    assert fault_text(program, fault) == "s.kp: wrong; do right"
    fault.frames = frames(3)
    assert fault_text(program, fault).splitlines() == [
        "s.kp:1:3: wrong; do right",
        "one",
        "  ^",
        "    called from f1 at s.kp:2:3",
        "    called from f2 at s.kp:3:3",
    ]
    fault.frames = frames(1000)
    lines = fault_text(program, fault).splitlines()
    assert len(lines) == 3 + MAX_CALLERS + 1 and lines[-1] == f"    and {999 - MAX_CALLERS} more"


def test_the_same_replay_prints_the_same() -> None:
    script = """
        t = {}
        trace a:b { t[nsecs % 7] += 1 s[nsecs % 3] <<< nsecs }
        tick-1ms { print_hist(t) delete(t) print(nsecs, gettimeofday_us()) }
        trace_end { print(nsecs) hist(s) }
        s = {}
    """
    batches: List[Tuple[List[Tuple[object, ...]], int]] = [(at(*range(0, 3_000_000, 1000)), 3_000_001)]
    texts = {executed(script, Recorded(batches))[0] for _ in range(2)}
    assert len(texts) == 1 and "3000001" in texts.pop()


def test_machines_are_not_shared() -> None:
    machines: Dict[int, Machine] = {n: made("n = 0 trace a:b { n += 1 print(n) }") for n in range(2)}
    for machine in machines.values():
        Run(machine, Recorded([(at(1, 2), 3)]), REPLAY).execute()
        assert printed(machine) == "1\n2\n"

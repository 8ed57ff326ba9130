"""The library as scripts use it: compiled, run by the machine, its limits and its faults with their places."""

from __future__ import annotations

import pytest
from small_machine import MadeUpHost, Written

from compiler.compile import compile_source
from vm.fault import Exit, Fault
from vm.limits import Limits
from vm.machine import MAX_PROBES, Machine, Options


def machine_of(script: str, **options: object) -> Machine:
    program = compile_source(script, "t.kp").program
    return Machine(program, Written(), MadeUpHost(), Options(**options))  # type: ignore[arg-type]


def printed(script: str) -> str:
    machine = machine_of(script)
    machine.run_main()
    assert isinstance(machine.output, Written)
    return machine.output.data.decode()


def fault_of(script: str, **options: object) -> Fault:
    with pytest.raises(Fault) as caught:
        machine_of(script, **options).run_main()
    return caught.value


def test_the_probes_of_the_first_readme() -> None:
    machine = machine_of(
        """
        function eventfun (e) {
                printf("%d %d\\t%s\\t%s", cpu(), pid(), execname(), e.tostring())
        }
        kdebug.probe("tp:syscalls", eventfun)
        kdebug.probe_end(function () { printf("probe end\\n") })
        timer.tick("10ms", function () { })
        """
    )
    machine.run_main()
    assert [(probe.event, probe.takes_event, probe.span.line) for probe in machine.probes] == [
        ("syscalls:*", True, 5),
        ("trace_end", False, 6),
        ("tick-10ms", False, 7),
    ]


def test_probes_are_set_in_the_main_chunk_and_not_for_ever() -> None:
    machine = machine_of('kdebug.trace_end(function () { kdebug.kprobe("vfs_read", function () { }) })')
    machine.run_main()
    with pytest.raises(Fault) as caught:
        machine.run_handler(0, "trace_end")
    assert caught.value.kind == "probe"
    fault = fault_of('function f() { } while (true) { timer.tick("1s", f) }')
    assert (fault.kind, fault.message) == ("probe", f"more than {MAX_PROBES} probes")


def test_sort_pairs_calls_back_into_the_script() -> None:
    assert printed(
        """
        t = {3, 1, 2}
        function before(a, b) { return a < b }
        for (k, v in sort_pairs(t, before)) { print(k, v) }
        for (k, v in sort_pairs(t, function (a, b, k1, k2) { return k2 - k1 })) { print(k, v) }
        """
    ) == "2\t1\n3\t2\n1\t3\n" + "3\t2\n2\t1\n1\t3\n"  # fmt: skip


def test_faults_in_a_callback_tell_the_calls() -> None:
    fault = fault_of("for (k, v in sort_pairs({1, 2}, function (a, b) {\n return a / 0 })) { }")
    assert (fault.message, [frame.span.line for frame in fault.frames]) == ("divide 0", [2, 1])
    recursion = "function f() { for (k, v in sort_pairs({1, 2}, function (a, b) { return f() })) { } return true } f()"
    assert fault_of(recursion).message == "stack overflow"


def test_aggregations() -> None:
    script = """
    for (i = 1, 10) { s[i % 2] <<< i  all <<< i }
    print(count(s), sum(s), avg(s), min(s), max(s), count(all))
    print(count(s[0]), sum(s[0]), count(s[9]), avg(s[9]))
    var step = 5
    lhist(all, 0, 10, step)
    """
    lines = printed(script).split("\n")
    assert lines[:2] == ["10\t55\t5\t1\t10\t10", "5\t30\t0\tnil"]
    assert [line.split("|")[0].strip() for line in lines[3:-1]] == ["[0, 5)", "[5, 10)", "[10, ...)"]


def test_steps_that_are_no_constants_are_told() -> None:
    fault = fault_of("s <<< 1\nfunction f(step) { lhist(s, 0, 10, step) }\nf(7)")
    assert fault.message == "lhist: samples were not kept in steps of 7 from 0 to 10"
    assert [frame.function for frame in fault.frames] == ["f", "main chunk"]


@pytest.mark.parametrize(
    "grow",
    [
        't[i] = ffi.new("char[100000]")',
        't[i] = string.split(string.rep("x,", 10000), ",")',
        "t[i] = string.rep(tostring(i), 10000)",
        'u[i % 10000] = i t[i] = pairs(u)',
        't[i] = sprintf("%1000d", i)',
        "t[i] = {} t[i][1] <<< i",
    ],
)  # fmt: skip
def test_what_grows_for_ever_ends(grow: str) -> None:
    options = Options(limits=Limits(memory_bytes=8 << 20, table_entries=1 << 20))
    fault = fault_of(f"i = 0 while (true) {{ i += 1 {grow} }}", **options._asdict())
    assert fault.kind == "memory"


def test_exit() -> None:
    with pytest.raises(Exit) as caught:
        machine_of("function f() { exit(3) } f()").run_main()
    assert caught.value.status == 3


def test_ffi() -> None:
    script = """
    ffi.cdef("enum e { A = 7 }; struct p { int a; char name[4]; struct { u8 deep; } inner; };")
    var p = ffi.new("struct p", "\\x05\\x00\\x00\\x00abc\\x00\\x09")
    print(p.a, p.name, p.inner.deep, ffi.sizeof("struct p"), ffi.C.A)
    """
    assert printed(script) == "5\tabc\t9\t12\t7\n"
    fault = fault_of('\nffi.C.printk("x")')
    assert (fault.message, fault.hint) == (
        "ffi.C.printk: no function of the kernel can be called",
        "use print or printf",
    )
    assert fault.frames[0].span.line == 2

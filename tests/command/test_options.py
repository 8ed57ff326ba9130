"""What command lines mean, and what is refused."""

from __future__ import annotations

import shlex

import pytest

from ktap.options import Options, parse, read_duration, read_size
from vm.diagnostic import Refusal

MEANINGS = [
    ("a.kp", Options(script="a.kp")),
    ("a.kp 1 -q --x y -- ls -l", Options(script="a.kp", arguments=("1", "-q", "--x", "y"), command=("ls", "-l"))),
    ("a.kp -- a -- b", Options(script="a.kp", command=("a", "--", "b"))),
    ("-q -T -v -", Options(script="-", quiet=True, stamp=True, verbose=True)),
    ("-e 'print(1)'", Options(code="print(1)")),
    ("-e x -q 1 -q", Options(code="x", quiet=True, arguments=("1", "-q"))),
    ("-o out a.kp", Options(script="a.kp", output="out")),
    ("--output=out a.kp", Options(script="a.kp", output="out")),
    ("-oout a.kp", Options(script="a.kp", output="out")),
    ("-p 12 -C 1 a.kp", Options(script="a.kp", pid=12, cpu=1)),
    ("-d 5 a.kp", Options(script="a.kp", duration_ns=5_000_000_000)),
    ("-d5 a.kp", Options(script="a.kp", duration_ns=5_000_000_000)),
    ("--duration 300ms a.kp", Options(script="a.kp", duration_ns=300_000_000)),
    ("-d a.kp", Options(script="a.kp", dry_run=True)),
    ("-s -- ls", Options(action="simple", command=("ls",))),
    ("-s sched:* raw:sys_enter", Options(action="simple", arguments=("sched:*", "raw:sys_enter"))),
    ("-b a.kp", Options(action="bytecode", script="a.kp")),
    ("-le", Options(action="list")),
    ("-le sched:* -v", Options(action="list", pattern="sched:*", verbose=True)),
    ("list sched:* -v", Options(action="list", pattern="sched:*", arguments=("sched:*",), verbose=True)),
    ("--record r a.kp", Options(script="a.kp", record="r")),
    ("--replay r a.kp", Options(script="a.kp", replay="r")),
    ("--buffer perf --buffer-bytes 1M a.kp", Options(script="a.kp", buffer="perf", buffer_bytes=1 << 20)),
    ("--fail-on-loss --unsafe a.kp", Options(script="a.kp", fail_on_loss=True, unsafe=True)),
    (
        "--max-depth 30 --max-memory=2M a.kp",
        Options(script="a.kp", limits=(("call_depth", 30), ("memory_bytes", 2 << 20))),
    ),
    ("compile a.kp -o a.kpc --strip", Options(action="compile", script="a.kp", output="a.kpc", strip=True)),
    ("dump --stage ast a.kp", Options(action="dump", script="a.kp", stage="ast")),
    ("dump -e x", Options(action="dump", code="x")),
    ("doctor -q", Options(action="doctor", quiet=True)),
    ("./list", Options(script="./list")),
    ("help functions", Options(action="help", arguments=("functions",))),
    ("-V", Options(action="version")),
    ("--help", Options(action="help")),
]


@pytest.mark.parametrize(("line", "options"), MEANINGS, ids=[line for line, _ in MEANINGS])
def test_meaning(line: str, options: Options) -> None:
    assert parse(shlex.split(line)) == options


REFUSED = [
    ("", "no script given; try ktap FILE.kp"),
    ("-q", "no script given"),
    ("-q list perf", "no script list; an action comes before options: ktap list …"),
    ("--durat 5 a", "unknown option --durat; did you mean --duration?"),
    ("--max-deph 5 a", "unknown option --max-deph; did you mean --max-depth?"),
    ("-z a", "unknown option -z; see ktap --help"),
    ("--quiet=3 a", "unknown option --quiet=3"),
    ("-o", "-o needs FILE; write what the script prints to FILE"),
    ("-p x a", "-p x: not a number"),
    ("-p -1 a", "-p -1: not a number"),
    ("--duration soon a", "--duration soon: not a time such as"),
    ("-d 5x a", "-d 5x: not a time such as"),
    ("--duration", "--duration needs SECONDS"),
    ("--max-depth 0 a", "--max-depth 0: not a number above 0"),
    ("--max-depth 99999999 a", "--max-depth 99999999: not a number from 1 to"),
    ("--buffer disk a", "--buffer disk: not one of auto, perf, ring"),
    ("dump --stage x a", "--stage x: not one of ast, bytecode"),
    ("a.kp --", "no command behind --"),
    ("-p 1 a.kp -- ls", "-p and -- both say which process to trace"),
    ("--replay r a.kp -- ls", "--replay takes its events from a file"),
    ("--replay r --record s a.kp", "--replay takes its events from a file"),
    ("compile a.kp", "compile needs -o FILE"),
    ("compile a.kp b.kp -o c", "one word too many: b.kp; compile SCRIPT -o FILE"),
    ("compile a.kp -o c -- ls", "ktap compile runs no command"),
    ("list a b", "one word too many: b"),
    ("doctor x", "one word too many: x"),
    ("--strip a.kp", "--strip does not go with ktap run; it goes with compile"),
    ("list --record x", "--record does not go with ktap list"),
]


@pytest.mark.parametrize(("line", "message"), REFUSED, ids=[line or "nothing" for line, _ in REFUSED])
def test_refused(line: str, message: str) -> None:
    with pytest.raises(Refusal) as caught:
        parse(shlex.split(line))
    assert caught.value.status == 2
    assert f"ktap: {message}" in caught.value.render()
    assert "\n" not in caught.value.render()


@pytest.mark.parametrize(("text", "size"), [("1", 1), ("4096", 4096), ("64K", 65536), ("2m", 2 << 20), ("1G", 1 << 30)])
def test_sizes(text: str, size: int) -> None:
    assert read_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "K", "-1", "1.5M", "1T", "²"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="a number above 0"):
        read_size(text)


@pytest.mark.parametrize(
    ("text", "time_ns"),
    [
        ("1", 10**9),
        ("0.5", 5 * 10**8),
        (".5s", 5 * 10**8),
        ("20ms", 2 * 10**7),
        ("7us", 7000),
        ("9ns", 9),
        ("2m", 12 * 10**10),
        ("1h", 36 * 10**11),
    ],
)
def test_durations(text: str, time_ns: int) -> None:
    assert read_duration(text) == time_ns


@pytest.mark.parametrize("text", ["", "s", ".", "1.2.3", "-1", "1e3", "5 s", "nan"])
def test_no_durations(text: str) -> None:
    with pytest.raises(ValueError, match="a time such as"):
        read_duration(text)

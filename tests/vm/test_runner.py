"""`python3 -m vm`: a compiled script runs where there is nothing but the standard library."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
import zipapp
from pathlib import Path

import pytest

from compiler.compile import compile_source
from vm import __main__ as runner
from vm.arguments import argument, read_size, script_arguments, with_limit
from vm.diagnostic import Refusal
from vm.image import dump
from vm.limits import FLAGS, MAX_CALL_DEPTH, Limits

ROOT = Path(__file__).resolve().parent.parent.parent
START = (
    'import sys, runpy; sys.path.insert(0, "."); sys.argv[0:1] = ["vm"]; runpy.run_module("vm", run_name="__main__")'
)
SCRIPT = """\
function fib(n) { if (n < 2) { return n } return fib(n - 1) + fib(n - 2) }
print("fib", fib(15), arg[1], arg.name)
trace_begin { print("begin") }
rounds = 0
tick-10ms { rounds += 1 if (rounds == 3) { print("tick", rounds) exit(4) } }
trace_end { s["a"] = 3 s["b"] = 9 print_hist(s) }
"""
OUTPUT = """\
fib\t610\t7\tx
begin
tick\t3
                          value ------------- Distribution ------------- count
"""


def interpreters() -> list[str]:
    """The Pythons that are here and can start."""
    names = [sys.executable, "/usr/bin/python3", *(f"python3.{minor}" for minor in range(9, 15))]
    found = {shutil.which(name) for name in names} - {None}
    return sorted(
        str(path) for path in found if subprocess.run([str(path), "-c", ""], capture_output=True).returncode == 0
    )


def image(path: Path, text: str) -> str:
    path.write_bytes(dump(compile_source(text, "script.kp").program))
    return str(path)


@pytest.fixture
def alone(tmp_path: Path) -> Path:
    """A directory with a copy of vm/ and nothing else of ours."""
    shutil.copytree(ROOT / "vm", tmp_path / "target" / "vm", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "target"


def run(directory: Path, *words: str, python: str = sys.executable, input: bytes = b"") -> tuple[int, str, str]:
    command = [python, "-I", "-S", "-c", START, *words]
    done = subprocess.run(command, cwd=directory, input=input, capture_output=True, timeout=60)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.mark.parametrize("python", interpreters())
def test_a_script_runs_alone(python: str, alone: Path) -> None:
    path = image(alone / "script.kpc", SCRIPT)
    status, output, errors = run(alone, path, "7", "--name", "x", python=python)
    assert errors == ""
    assert output.startswith(OUTPUT)
    assert status == 4


def test_from_an_archive(alone: Path, tmp_path: Path) -> None:
    path = image(tmp_path / "script.kpc", SCRIPT)
    zipapp.create_archive(alone, tmp_path / "vm.pyz", main="vm.__main__:main")
    done = subprocess.run([sys.executable, "-I", "-S", tmp_path / "vm.pyz", path], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (4, "")
    assert done.stdout.startswith("fib\t610\tnil\tnil\nbegin\n")


def test_nothing_but_the_standard_library_is_imported(alone: Path) -> None:
    path = image(alone / "script.kpc", SCRIPT)
    code = "import sys; from vm.__main__ import run; run(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-S", "-c", code, path], cwd=alone, capture_output=True, text=True)
    modules = {name.split(".")[0] for name in done.stderr.split()}
    assert modules - set(sys.stdlib_module_names) == {"vm", "__main__"} - set(sys.stdlib_module_names)


def test_a_fault_is_told_with_its_place(alone: Path) -> None:
    path = image(
        alone / "a.kpc", "function f(n) { return 1 / n + 1 }\nprint(1)\nvar x = f(0)\ntrace_end { print('end') }\n"
    )
    status, output, errors = run(alone, path)
    assert status == 1
    assert output == "1\n"
    assert errors == (
        "script.kp:1:26: divide 0\n"
        "function f(n) { return 1 / n + 1 }\n"
        "                         ^\n"
        "    called from main chunk at script.kp:3:9\n"
    )


def test_trace_end_runs_after_a_fault(alone: Path) -> None:
    path = image(alone / "a.kpc", "trace_end { print('end') }\nvar x = 1 / 0\n")
    status, output, _ = run(alone, path)
    assert (status, output) == (1, "end\n")


def test_a_script_that_traces_live_events(alone: Path) -> None:
    path = image(alone / "a.kpc", "print('main')\ntrace sched:* { print(1) }\n")
    status, output, errors = run(alone, path)
    assert (status, output) == (3, "main\n")
    assert errors.startswith("script.kp:2:7: this runner has no live events; the ktap command traces them\n")


def test_limits(alone: Path) -> None:
    path = image(alone / "a.kpc", "function f(n) { return 1 + f(n + 1) }\nvar x = f(0)\n")
    status, _, errors = run(alone, "--max-depth", "20", path)
    assert status == 1
    assert "script.kp:1:28: stack overflow; raise the limit with --max-depth\n" in errors
    assert errors.count("called from f") == 19
    path = image(alone / "b.kpc", "for (i = 1, 100) { t[i] = i }\nprint(len(t))\n")
    assert run(alone, "--max-entries=40", path) == (
        0,
        "40\n",
        "vm: lost 60 keys: table full (t, limit of 40 entries)\n",
    )
    path = image(alone / "c.kpc", "while (true) { print('x') }\n")
    status, output, errors = run(alone, "--max-output", "1K", path)
    assert (status, len(output)) == (1, 1024)
    assert "more output than the limit of 1024 bytes" in errors


def test_the_image_may_come_from_standard_input(alone: Path) -> None:
    image(alone / "a.kpc", "print(arg[0], arg[1])")
    assert run(alone, "-", "one", input=(alone / "a.kpc").read_bytes()) == (0, "-\tone\n", "")


def test_bad_usage(alone: Path) -> None:
    path = image(alone / "a.kpc", "print(1)")
    (alone / "text.kp").write_text("print(1)")
    hint = "; see python3 -m vm --help\n"
    assert run(alone) == (2, "", "vm: which script?" + hint)
    assert run(alone, "--what", path) == (2, "", "vm: unknown option --what" + hint)
    wrong = "vm: --max-depth x: not a number above 0, such as 4096, 64K or 16M" + hint
    assert run(alone, "--max-depth", "x", path) == (2, "", wrong)
    assert run(alone, "--max-depth=0", path)[0] == 2
    assert run(alone, "--max-depth")[0] == 2
    assert run(alone, "--max-depth=100M", path) == (
        2,
        "",
        f"vm: --max-depth 100M: not a number from 1 to {MAX_CALL_DEPTH}{hint}",
    )
    assert run(alone, "none.kpc") == (2, "", "vm: cannot read none.kpc: No such file or directory" + hint)
    status, output, errors = run(alone, "text.kp")
    assert (status, output) == (1, "")
    assert errors == "text.kp: not a ktap image; compile the script first: ktap compile SCRIPT.kp -o SCRIPT.kpc\n"


def test_damaged_images(alone: Path) -> None:
    whole = Path(image(alone / "a.kpc", "print(1)")).read_bytes()
    (alone / "b.kpc").write_bytes(whole[:-1])
    assert run(alone, "b.kpc") == (1, "", f"b.kpc: truncated at {len(whole) - 1} of {len(whole)} bytes\n")
    (alone / "c.kpc").write_bytes(whole[:-1] + b"?")
    assert run(alone, "c.kpc") == (1, "", "c.kpc: its checksum does not match: the file is damaged\n")


def test_help(alone: Path) -> None:
    status, output, errors = run(alone, "--help")
    assert (status, errors) == (0, "")
    assert output.startswith("usage: python3 -m vm")
    for flag in FLAGS:
        assert f"{flag.name} N" in output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_it_with_trace_end(number: signal.Signals, alone: Path) -> None:
    path = image(alone / "a.kpc", "print('ready')\ntick-1s { x = 1 }\ntrace_end { print('end') }\n")
    command = [sys.executable, "-I", "-S", "-u", "-c", START, path]
    with subprocess.Popen(command, cwd=alone, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.read() == "end\n"
    assert process.returncode == 0


def test_a_reader_that_has_gone(alone: Path) -> None:
    path = image(alone / "a.kpc", "for (i = 1, 1000000) { print('a line of some length', i) }\n")
    start = time.monotonic()
    command = f"exec {sys.executable} -I -S -c '{START}' {path} | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], cwd=alone, capture_output=True, text=True)
    assert done.stdout == "a line of some length\t1\n"
    assert done.stderr == "vm: standard output: Broken pipe\n"
    assert done.returncode == 1
    assert time.monotonic() - start < 10


# -- in this process, for what the copies above do not show to coverage ---------------------------


def test_run_in_this_process(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr("os.close", lambda _: None)
    path = image(tmp_path / "a.kpc", "t[1] = 1 t[2] = 2 t[3] = 3 print(len(t), arg[1])")
    assert runner.run(["--max-entries", "2", path, "x"]) == 0
    assert capfdbinary.readouterr() == (b"2\tx\n", b"vm: lost 1 keys: table full (t, limit of 2 entries)\n")
    assert runner.run([str(tmp_path / "none")]) == 2
    assert runner.run([__file__]) == 1
    assert runner.run(["--help"]) == 0
    monkeypatch.setattr(sys, "argv", ["vm", "-h"])
    with pytest.raises(SystemExit) as leaving:
        runner.main()
    assert leaving.value.code == 0


def test_options() -> None:
    assert runner.read_options(["a.kpc", "--max-depth", "3"]) == ("a.kpc", ("--max-depth", "3"), Limits())
    assert runner.read_options(["--max-depth=3", "-"]).limits.call_depth == 3
    for words in ([], ["--max-depth"], ["--x", "a"], ["-x"], ["--max-depth=9999999", "a"]):
        with pytest.raises(Refusal) as refusal:
            runner.read_options(words)
        assert refusal.value.status == 2


@pytest.mark.parametrize(
    "word, value",
    [
        ("12", 12),
        ("-12", -12),
        ("007", 7),
        ("9223372036854775807", (1 << 63) - 1),
        ("-9223372036854775808", -(1 << 63)),
        ("9223372036854775808", b"9223372036854775808"),
        ("99999999999999999999", b"99999999999999999999"),
        ("--1", b"--1"),
        ("-", b"-"),
        ("", b""),
        ("²", "²".encode()),
        ("\udcff", b"\xff"),
    ],
)
def test_arguments(word: str, value: object) -> None:
    assert argument(word) == value


def test_the_table_of_arguments() -> None:
    words = ["a", "--x", "5", "--y=z", "b", "--flag", "--", "7", "--last"]
    assert script_arguments("s.kp", words) == {
        0: b"s.kp", 1: b"a", b"x": 5, b"y": b"z", 2: b"b", b"flag": 1, 3: b"--", 4: 7, b"last": 1,
    }  # fmt: skip


def test_sizes() -> None:
    assert [read_size(word) for word in ("1", "64K", "2m", "3G")] == [1, 65536, 2 << 20, 3 << 30]
    for word in ("", "0", "-1", "K", "1.5", "1T", "9" * 5000, "²"):
        with pytest.raises(ValueError, match="a number above 0"):
            read_size(word)


@pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: flag.name)
def test_every_limit_can_be_set(flag: object) -> None:
    name, field, least = flag.name, flag.field, flag.minimum  # type: ignore[attr-defined]
    assert getattr(with_limit(Limits(), name, str(least)), field) == least
    with pytest.raises(LookupError):
        with_limit(Limits(), name + "x", "1")

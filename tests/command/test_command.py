"""The ktap command as a user has it: what it prints, its exit status, how it ends. No events needed."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import time
from pathlib import Path
from typing import Callable

import pytest
from conftest import COMMAND, NOBODY, ROOT, Ktap

from compiler.compile import compile_source
from vm.image import dump

ENDLESS = 'print("main") tick-50ms { print("tick") } trace_end { print("the end") }'
TRACING = "Tracing... Hit Ctrl-C to end.\n"


def test_runs_a_script(ktap: Ktap, tmp_path: Path) -> None:
    script = tmp_path / "hello.kp"
    script.write_text('#!/usr/bin/env ktap\nprint("hello", 1 + 2)\n')
    done = ktap(str(script))
    assert (done.stdout, done.stderr) == ("hello\t3\n", "")


def test_the_second_run_says_the_same(ktap: Ktap) -> None:
    """It comes from the cache of compiled scripts."""
    for _ in range(2):
        assert ktap("-e", 'print("once", arg[1])', "more").stdout == "once\tmore\n"


def test_standard_input(ktap: Ktap) -> None:
    assert ktap("-", "x", input="print(arg[1], arg[0])").stdout == "x\t-\n"


def test_standard_input_that_is_closed(environment: dict[str, str]) -> None:
    words = ["sh", "-c", 'exec "$@" <&-', "sh", *COMMAND, "-"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "ktap: cannot read standard input: Bad file descriptor\n"


def test_shebang(environment: dict[str, str], tmp_path: Path) -> None:
    """A script that is a program: env finds ktap on the PATH."""
    places = tmp_path / "bin"
    places.mkdir()
    starter = places / "ktap"
    starter.write_text(f'#!/bin/sh\nexec {" ".join(COMMAND)} "$@"\n')
    script = tmp_path / "tool"
    script.write_text("#!/usr/bin/env ktap\nprint(arg[1], arg.x)\n")
    for path in (starter, script):
        path.chmod(0o755)
    environment["PATH"] = f"{places}:{environment['PATH']}"
    done = subprocess.run([script, "7", "--x", "y"], env=environment, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("7\ty\n", "", 0)


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (("a", "b"), "a|b|nil|nil"),
        (("5", "-6"), "5|-6|nil|nil"),
        (("--x", "1", "b"), "b|nil|1|nil"),
        (("--x=", "b"), "b|nil||nil"),
        (("--x", "--y=a=b"), "nil|nil|1|a=b"),
        (("-x", "9223372036854775808"), "-x|9223372036854775808|nil|nil"),
        (("-9223372036854775808", "+1"), "-9223372036854775808|+1|nil|nil"),
        (("é", "\udcff"), "é|\udcff|nil|nil"),
    ],
)
def test_arguments(ktap: Ktap, words: tuple[str, ...], shown: str) -> None:
    done = ktap("-", *words, input='printf("%s|%s|%s|%s\\n", arg[1], arg[2], arg.x, arg.y)')
    assert done.stdout == shown + "\n"


def test_numbers_among_the_arguments_are_integers(ktap: Ktap) -> None:
    assert ktap("-e", "print(arg[1] + 1, len(arg[2]))", "41", "x41").stdout == "42\t3\n"


def test_compiled_scripts(ktap: Ktap, tmp_path: Path) -> None:
    (tmp_path / "a.kp").write_text('print("compiled", arg[0], 1 / arg[1])\n')
    ktap("compile", "a.kp", "-o", "a.kpc")
    assert ktap("a.kpc", "1").stdout == "compiled\ta.kpc\t1\n"
    whole = ktap("a.kpc", "0", status=1).stderr
    assert whole.splitlines()[:2] == ["a.kp:1:29: divide 0", 'print("compiled", arg[0], 1 / arg[1])']
    ktap("compile", "a.kp", "--strip", "-o", "b.kpc")
    assert ktap("b.kpc", "0", status=1).stderr == "a.kp:1:29: divide 0\n"


def test_a_damaged_image_is_refused(ktap: Ktap, tmp_path: Path) -> None:
    ktap("compile", "-e", "print(1)", "-o", "a.kpc")
    image = (tmp_path / "a.kpc").read_bytes()
    (tmp_path / "b.kpc").write_bytes(image[:-3])
    done = ktap("b.kpc", status=1)
    assert done.stdout == ""
    assert done.stderr.startswith("b.kpc: ")


def test_no_name_in_an_image_commands_the_terminal(ktap: Ktap, tmp_path: Path) -> None:
    program = compile_source("function f() { return 1 / arg.x } f(1)", "a.kp").program
    names = [function._replace(name=f"\x1b[2J{function.name}") for function in program.functions]
    hostile = program._replace(source_name="\x1b[31ma.kp", source="\x1b[2J\r\x08", functions=tuple(names))
    (tmp_path / "a.kpc").write_bytes(dump(hostile))
    for words, status in ((("a.kpc", "--x=0"), 1), (("-b", "a.kpc"), 0), (("-v", "a.kpc", "--x=1"), 0)):
        done = ktap(*words, status=status)
        assert "a.kp" in done.stdout + done.stderr
        assert not set("\x1b\r\x08") & set(done.stdout + done.stderr)


def test_compile_reports_a_full_disk(ktap: Ktap) -> None:
    done = ktap("compile", "-e", "print(1)", "-o", "/dev/full", status=1)
    assert done.stderr == "ktap: cannot write /dev/full: No space left on device\n"


def test_what_is_read_is_not_written_over(ktap: Ktap, tmp_path: Path) -> None:
    script = tmp_path / "a.kp"
    script.write_text("print(1)\n")
    (tmp_path / "b.kp").symlink_to("a.kp")
    for words in (
        ("compile", "a.kp", "-o", "a.kp"),
        ("compile", "a.kp", "-o", "./b.kp"),
        ("-o", "a.kp", "a.kp"),
        ("--record", "a.kp", "a.kp"),
    ):
        assert "would be written over" in ktap(*words, status=2).stderr
    assert script.read_text() == "print(1)\n"


def test_a_compiled_script_has_no_syntax_tree(ktap: Ktap) -> None:
    ktap("compile", "-e", "print(1)", "-o", "a.kpc")
    assert "has no syntax tree" in ktap("dump", "--stage", "ast", "a.kpc", status=2).stderr


@pytest.mark.root
@pytest.mark.live
def test_a_process_or_processor_that_is_not_there_is_refused(ktap: Ktap) -> None:
    trace = ("-e", "trace sched:sched_switch { }")
    assert ktap("-p", "99999999", *trace, status=2).stderr == "ktap: -p 99999999: there is no such process\n"
    assert "-C 4096: there is no such processor" in ktap("-C", "4096", *trace, status=2).stderr


def test_bytecode(ktap: Ktap) -> None:
    for words in (
        ("-b", "-e", "print(42)"),
        ("dump", "-e", "print(42)"),
        ("dump", "--stage=bytecode", "-e", "print(42)"),
    ):
        shown = ktap(*words).stdout
        assert "CALL" in shown
        assert "42" in shown


def test_version_and_help(ktap: Ktap) -> None:
    assert ktap("-V").stdout == ktap("--version").stdout
    assert ktap("-V").stdout.startswith("ktap 0.")
    page = ktap("--help").stdout
    for word in ("--duration", "--max-entries N", "compile SCRIPT", "Exit status"):
        assert word in page
    assert "string.upper(s: string)" in ktap("help", "functions").stdout
    assert "execname" in ktap("help", "variables").stdout
    assert "--max-entries 16384" in ktap("help", "limits").stdout


def test_help_on_a_name(ktap: Ktap) -> None:
    assert ktap("help", "string.upper").stdout.startswith("  string.upper(s: string)")
    assert ktap("help", "string").stdout.count("string.") == ktap("help", "functions").stdout.count("  string.")
    assert ktap("help", "execname").stdout.startswith("  execname ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "no script given"),
        (("nosuch.kp",), "cannot read nosuch.kp: No such file or directory"),
        (("/",), "cannot read /: Is a directory"),
        (("--nosuch",), "unknown option --nosuch"),
        (
            ("help", "me"),
            "no help on me; there is help on functions, variables, limits and on every function and variable",
        ),
        (("-o", "/nosuch/file", "-e", "print(1)"), "cannot write /nosuch/file: No such file or directory"),
        (("-e", "print(1)", "--", "/nosuch/program"), "cannot run /nosuch/program; no such program"),
        (("-e", "print(1)", "--", "nosuchprogram"), "cannot run nosuchprogram; no such program"),
        (("-e", "print(1)", "--", "/etc/passwd"), "cannot run /etc/passwd; it is no program that may be run"),
    ],
)
def test_bad_usage(ktap: Ktap, words: tuple[str, ...], message: str) -> None:
    done = ktap(*words, status=2)
    assert done.stdout == ""
    assert done.stderr.startswith(f"ktap: {message}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("script", "status", "message"),
    [
        ("a =", 1, "(command line):1:4: unexpected symbol near '<eof>'\na =\n   ^\n"),
        ("exit(7) print(1)", 7, ""),
        ("trace_end { exit(3) }", 3, ""),
        ("x = 1 / 0", 1, "(command line):1:7: divide 0\nx = 1 / 0\n      ^"),
        ("exit(256)", 0, ""),
    ],
)
def test_exit_status(ktap: Ktap, script: str, status: int, message: str) -> None:
    done = ktap("-e", script, status=status)
    assert done.stdout == ""
    assert done.stderr.startswith(message)
    assert bool(done.stderr) == bool(message)


@pytest.mark.parametrize(
    ("flag", "script", "message"),
    [
        ("--max-main-rounds=1000", "while (true) { }", "loop execute count exceed max limit"),
        ("--max-depth=20", "function f(n) { return 1 + f(n) } f(1)", "stack overflow"),
        ("--max-string=1K", 's = "x" while (true) { s = s .. s }', "longer than"),
        ("--max-memory=1M", "t = {} for (i = 1, 1000000) { t[i] = {} }", "memory"),
        ("--max-output=100", 'while (true) { print("x") }', "more output than the limit of 100 bytes"),
    ],
)
def test_limits(ktap: Ktap, flag: str, script: str, message: str) -> None:
    """Each ends the main chunk with its place; trace_end still runs and prints."""
    done = ktap(flag, "-e", f'trace_end {{ print("the end") }} {script}', status=1)
    assert message in done.stderr.splitlines()[0]
    assert done.stderr.startswith("(command line):1:")
    assert done.stdout.endswith("the end\n")


def test_a_full_table_is_told_and_can_be_the_exit_status(ktap: Ktap) -> None:
    words = ("--max-entries", "10", "-e", "t = {} for (i = 1, 25) { t[i] = i } print(len(t))")
    told = "ktap: lost 15 new keys: table full (t, limit of 10 entries); raise --max-entries\n"
    done = ktap(*words)
    assert (done.stdout, done.stderr) == ("10\n", told)
    done = ktap("--fail-on-loss", *words, status=4)
    assert (done.stdout, done.stderr) == ("10\n", told)


def test_output_to_a_file(ktap: Ktap, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("old and longer than what comes now\n")
    done = ktap("-o", "out", "-e", 'print("new")')
    assert done.stdout == ""
    assert (tmp_path / "out").read_text() == "new\n"


@pytest.mark.parametrize("script", ['print("x")', 'for (i = 1, 100000) { print("line", i) }'])
def test_a_full_disk(ktap: Ktap, script: str) -> None:
    done = ktap("-o", "/dev/full", "-e", script, status=1)
    assert done.stderr == "ktap: /dev/full: the disk is full; free some space or choose another place with -o\n"


def test_a_disk_that_fills_up_ends_tracing(ktap: Ktap) -> None:
    """While it traces: the first tick's output already does not fit."""
    begin = time.monotonic()
    done = ktap("-o", "/dev/full", "-e", ENDLESS.replace('print("main") ', ""), status=1)
    assert (
        done.stderr == TRACING + "ktap: /dev/full: the disk is full; free some space or choose another place with -o\n"
    )
    assert time.monotonic() - begin < 20


@pytest.mark.root
def test_a_small_disk(ktap: Ktap, tmp_path: Path) -> None:
    """What fits is written, the rest is told."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], check=True)
    try:
        done = ktap("-o", f"{disk}/out", "-e", 'for (i = 1, 1000000) { print("line", i) }', status=1)
        assert f"{disk}/out: the disk is full" in done.stderr
        written = (disk / "out").read_text()
        assert 200_000 < len(written) <= 256 << 10
        assert written.startswith("line\t1\nline\t2\n")
    finally:
        subprocess.run(["umount", disk], check=True)


def start(environment: dict[str, str], *words: str, stdout: int = subprocess.PIPE) -> subprocess.Popen[str]:
    """A ktap that runs, in a process group of its own."""
    return subprocess.Popen(
        [*COMMAND, *words],
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )


def wait_until(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.02)


def first_lines(running: subprocess.Popen[str], count: int) -> list[str]:
    assert running.stdout is not None
    return [running.stdout.readline() for _ in range(count)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_signals_end_a_run(environment: dict[str, str], number: signal.Signals) -> None:
    """Output comes while it runs although it goes to a pipe; trace_end runs once; the status is 0."""
    running = start(environment, "-e", ENDLESS)
    assert first_lines(running, 3) == ["main\n", "tick\n", "tick\n"]
    running.send_signal(number)
    output, errors = running.communicate(timeout=20)
    assert output.replace("tick\n", "") == "the end\n"
    assert (errors, running.returncode) == (TRACING, 0)


@pytest.mark.parametrize(
    "script",
    [
        'trace_end { print("the end") } print("main") for (i = 1, 40000000) { x = i % 7 } print("too late")',
        'print("main") tick-1ms { for (i = 1, 40000000) { x = i % 7 } print("too late") } trace_end { print("the end") }',
    ],
    ids=["main chunk", "tick"],
)
def test_a_signal_ends_a_long_computation(environment: dict[str, str], script: str) -> None:
    running = start(environment, "-q", "-e", script)
    time.sleep(1)
    running.send_signal(signal.SIGINT)
    output, errors = running.communicate(timeout=20)
    assert (output, errors, running.returncode) == ("main\nthe end\n", "", 0)


def test_a_second_signal_ends_it_at_once(environment: dict[str, str]) -> None:
    """Here trace_end would go on for very long."""
    script = 'print("main") tick-20ms { print("tick") } trace_end { print("ending") while (true) { } }'
    running = start(environment, "-q", "--max-main-rounds=1G", "-e", script)
    assert first_lines(running, 2) == ["main\n", "tick\n"]
    running.send_signal(signal.SIGINT)
    time.sleep(1)
    assert running.poll() is None
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=20)
    assert running.returncode == -signal.SIGINT
    assert errors == "ktap: ended at once; trace_end may not have run\n"


def test_a_signal_that_comes_twice_at_once_is_one(environment: dict[str, str]) -> None:
    """As timeout(1) sends it: to ktap, and to its process group."""
    script = 'print("main") tick-20ms { print("tick") } trace_end { for (i = 1, 3000000) { } print("the end") }'
    running = start(environment, "-q", "-e", script)
    assert first_lines(running, 2) == ["main\n", "tick\n"]
    running.send_signal(signal.SIGTERM)
    time.sleep(0.01)
    running.send_signal(signal.SIGTERM)
    output, errors = running.communicate(timeout=60)
    assert output.endswith("the end\n")
    assert (errors, running.returncode) == ("", 0)


def test_a_reader_that_goes_away(environment: dict[str, str]) -> None:
    """As in `ktap … | head -1`: it ends by itself."""
    running = start(environment, "-q", "-e", ENDLESS)
    assert first_lines(running, 1) == ["main\n"]
    assert running.stdout is not None
    running.stdout.close()
    assert running.stderr is not None
    assert running.stderr.read() == "ktap: standard output: its reader has gone\n"
    assert running.wait(timeout=20) == 1


def test_a_reader_that_takes_nothing_does_not_hold_up_the_end(environment: dict[str, str]) -> None:
    script = 'tick-1ms { for (i = 1, 1000) { print("a line that nobody reads", i) } }'
    running = start(environment, "-q", "-e", script)
    time.sleep(1.5)
    running.send_signal(signal.SIGINT)
    assert running.wait(timeout=30) == 1
    assert running.communicate()[1] == "ktap: standard output: its reader takes nothing\n"


def test_closed_standard_output(environment: dict[str, str]) -> None:
    line = f"exec {' '.join(COMMAND)} -e 'print(1)' >&-"
    done = subprocess.run(["sh", "-c", line], env=environment, capture_output=True, text=True, check=False)
    assert (done.stderr, done.returncode) == ("ktap: standard output: it is closed\n", 1)


def test_a_terminal_gets_each_line_at_once(environment: dict[str, str]) -> None:
    master, slave = pty.openpty()
    running = start(environment, "-q", "-e", 'print("at once") tick-1000s { }', stdout=slave)
    os.close(slave)
    assert os.read(master, 100) == b"at once\r\n"
    running.send_signal(signal.SIGINT)
    assert running.wait(timeout=20) == 0
    os.close(master)


def test_duration(ktap: Ktap) -> None:
    begin = time.monotonic()
    done = ktap("-d", "0.5", "-e", ENDLESS)
    assert 0.5 < time.monotonic() - begin < 20
    assert done.stdout.startswith("main\ntick\n")
    assert done.stdout.endswith("tick\nthe end\n")
    assert done.stderr == TRACING


def test_quiet(ktap: Ktap) -> None:
    assert ktap("-q", "-d", "100ms", "-e", ENDLESS).stderr == ""


def test_stamps(ktap: Ktap) -> None:
    before = time.monotonic()
    done = ktap("-T", "-q", "-d", "300ms", "-e", 'tick-100ms { print("a") print("b") }')
    lines = done.stdout.splitlines()
    assert len(lines) >= 4
    for line in lines:
        stamp, _, text = line.partition("] ")
        assert text in ("a", "b")
        assert before < float(stamp[1:]) < time.monotonic()


def test_the_command_starts_after_the_main_chunk_and_ends_the_run(ktap: Ktap) -> None:
    done = ktap("-q", "-e", 'print("main") tick-1000s { } trace_end { print("the end") }', "--", "echo", "command")
    assert sorted(done.stdout.splitlines()) == ["command", "main", "the end"]


def test_the_command_s_status_is_its_own(ktap: Ktap) -> None:
    ktap("-q", "-e", "tick-1000s { }", "--", "false")


def test_no_probe_no_command(ktap: Ktap) -> None:
    assert ktap("-e", 'print("main")', "--", "echo", "command").stdout == "main\n"


def test_the_end_of_the_run_ends_the_command(ktap: Ktap, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    begin = time.monotonic()
    ktap("-q", "-d", "500ms", "-e", "tick-1000s { }", "--", "sh", "-c", f"echo $$ > {pid}; exec sleep 1000")
    assert time.monotonic() - begin < 20
    assert not Path(f"/proc/{pid.read_text().strip()}").exists()


def test_kill_ends_the_command_too(environment: dict[str, str], tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    running = start(environment, "-e", "tick-1000s { }", "--", "sh", "-c", f"echo $$ > {pid}; exec sleep 1000")
    wait_until(lambda: pid.exists() and pid.read_text().endswith("\n"))
    running.kill()
    running.communicate(timeout=20)
    assert running.returncode == -signal.SIGKILL
    wait_until(lambda: not Path(f"/proc/{pid.read_text().strip()}").exists())


def test_unsafe_functions_need_the_flag(ktap: Ktap) -> None:
    done = ktap("-e", 'system("echo hello")', status=1)
    assert "--unsafe" in done.stderr
    assert done.stdout == ""
    assert "hello" in ktap("--unsafe", "-e", 'system("echo hello")').stdout


@pytest.mark.root
def test_doctor_without_privilege(environment: dict[str, str]) -> None:
    del environment["XDG_CACHE_HOME"]
    as_nobody = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    done = subprocess.run(
        [*as_nobody, *COMMAND, "doctor"], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (3, "")
    privilege = done.stdout.splitlines()[0].split()
    assert privilege[:2] == ["privilege", "no"]
    assert "run with sudo" in done.stdout
    assert "tracing does not work" in done.stdout


def test_doctor_says_only_what_fails_when_asked(ktap: Ktap) -> None:
    done = ktap("doctor", "--quiet", status=None)
    assert bool(done.stdout) == (done.returncode == 3)
    assert " yes " not in done.stdout


def test_verbose(ktap: Ktap) -> None:
    told = ktap("-v", "-d", "100ms", "-e", ENDLESS).stderr.splitlines()
    assert told[0].startswith("ktap: (command line): 3 functions, ")
    assert told[1].startswith("ktap: probes are live after ")
    assert told[2] + "\n" == TRACING
    assert told[3].startswith("ktap: ended after ")


def test_dry_run(ktap: Ktap) -> None:
    done = ktap("-d", "-e", 'print("main") tick-1s { print("no") }')
    assert (done.stdout, done.stderr) == ("main\n", "ktap: dry run: 1 probe set, no handler run\n")
    assert "is no unit of time" in ktap("-d", "-e", 'timer.tick("1 fortnight", function () { })', status=1).stderr
    assert "divide 0" in ktap("-d", "-e", "x = 1 / 0", status=1).stderr


def test_a_package_that_hides_ktap_s_own_is_named(ktap: Ktap, tmp_path: Path) -> None:
    """`python3 -m` looks into the current directory first."""
    (tmp_path / "vm").mkdir()
    (tmp_path / "vm" / "__init__.py").touch()
    done = ktap("-e", "print(1)", status=1)
    assert done.stderr == f"ktap: another package named vm hides ktap's own: {tmp_path}/vm\n"

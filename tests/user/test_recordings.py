"""What was recorded of user probes gives the same output again."""

from __future__ import annotations

from pathlib import Path

import pytest
from c_program import compiled
from conftest import Ktap

from ktap.user_functions import means

SCRIPT = """
trace probe:{0}:work n=$arg1:s32 name=+0($arg2):string /n > 0/ {{ print(arg1, args.name, argstr) }}
trace probe:{0}:work%return {{ print(probename, retval) }}
trace probe:{0}:l* {{ print(probename, arg1) }}
trace perf:minor-faults {{ n["faults"] += 1 }}
"""


@pytest.mark.live
@pytest.mark.parametrize("backend", ["bpf", "perf"])
def test_the_same_again(work: Path, ktap: Ktap, tmp_path: Path, backend: str) -> None:
    script, recording = SCRIPT.format(work), str(tmp_path / "recording")
    live = ktap("-q", "--backend", backend, "--record", recording, "-e", script, "--", str(work), "3").stdout
    assert len(live.splitlines()) == 2 + 3 + 6
    assert ktap("-q", "--replay", recording, "-e", script).stdout == live


@pytest.mark.parametrize(
    "text, label, wanted",
    [
        ("probe:libc:malloc", "probe:libc:malloc", True),
        ("probe:libc:mall*", "probe:libc:malloc", True),
        ("probe:libc:mall*", "probe:libc:malloc%return", False),
        ("probe:libc:mall*%return", "probe:libc:malloc%return", True),
        ("probe:libc:malloc", "probe:libc:malloc n=%di", False),
        ("probe:libc:m* n=%di", "probe:libc:malloc n=%di", True),
        ("probe:libc:f", "probe:libc:f (0x1234)", True),
        ("probe:libm:malloc", "probe:libc:malloc", False),
        ("probe:a:ns::f", "probe:a:ns::f(int, char*)", True),
        ("sdt:python3:line", "sdt:python3:python:line", True),
        ("sdt:python3:python:*", "sdt:python3:python:line (0x12)", True),
    ],
)
def test_which_recorded_event_is_meant(text: str, label: str, wanted: bool) -> None:
    assert means(text, label) is wanted


@pytest.mark.live
def test_names_of_another_language(ktap: Ktap, tmp_path: Path) -> None:
    text = """
    namespace shop { __attribute__((noinline)) long add(long n, char *) { asm volatile("" ::: "memory"); return n; } }
    int main() { return shop::add(3, nullptr) == 1; }
    """
    program, recording = compiled(tmp_path / "till", text, language="c++"), str(tmp_path / "recording")
    script = f'trace "probe:{program}:shop::add" {{ print(probename, argstr, arg1) }}'
    live = ktap("-q", "--record", recording, "-e", script, "--", str(program)).stdout
    assert live.startswith("shop::add(long, char*)\tshop::add(long, char*): (0x")
    assert ktap("-q", "--replay", recording, "-e", script).stdout == live

"""Static markers: the operands of notes on both architectures, and real notes of the system's Python."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Optional

import pytest
from c_program import MARKERS, compiled
from tracing import EVENTS, trace

from ktap.demand import BYTES, USER, Binary, Expression, Number, Place, Read
from ktap.elf import open_binary
from ktap.markers import Operand, Reach, markers, operands, read_arm64, read_x86
from ktap.registers import MACHINES
from ktap.user_functions import Spot
from vm.diagnostic import Refusal
from vm.limits import Limits

PYTHON = "/usr/bin/python3"
X86, ARM = MACHINES["x86_64"].registers, MACHINES["aarch64"].registers


def whole(offset: int) -> Place:
    return Place(offset, 8, False)


def memory(address: Expression, size: int) -> Read:
    return Read(USER, BYTES, address, size)


def plus(left: Expression, right: Expression) -> Binary:
    return Binary("ADD", left, right)


RAX, RBX, RCX, RSP = (whole(X86[name].offset) for name in ("ax", "bx", "cx", "sp"))
X86_OPERANDS = [
    ("8@%rax", 8, False, RAX),
    ("-4@%eax", 4, True, Place(X86["ax"].offset, 4, False)),
    ("2@%ax", 2, False, Place(X86["ax"].offset, 8, False)),
    ("1@%ah", 1, False, Place(X86["ax"].offset + 1, 1, False)),
    ("1@%sil", 1, False, Place(X86["si"].offset, 1, False)),
    ("4@%r9d", 4, False, Place(X86["r9"].offset, 4, False)),
    ("-4@$-7", 4, True, Number(-7)),
    ("8@$0x10", 8, False, Number(16)),
    ("8@(%rbx)", 8, False, memory(RBX, 8)),
    ("8@-80(%rbx)", 8, False, memory(plus(RBX, Number(-80)), 8)),
    ("-4@112(%rsp)", 4, True, memory(plus(RSP, Number(112)), 4)),
    ("8@16+8(%rsp)", 8, False, memory(plus(RSP, Number(24)), 8)),
    ("4@8(%rax,%rcx,4)", 4, False, memory(plus(plus(RAX, Binary("SHL", RCX, Number(2))), Number(8)), 4)),
    ("4@(%rax,%rcx)", 4, False, memory(plus(RAX, Binary("SHL", RCX, Number(0))), 4)),
    ("8@0(,%rcx,8)", 8, False, memory(plus(Number(0), Binary("SHL", RCX, Number(3))), 8)),
    ("%rax", 8, True, RAX),
    ("8@%xmm0", 8, False, None),
    ("8@nosuch(%rip)", 8, False, None),
]
X0, X1, SP = (whole(ARM[name].offset) for name in ("x0", "x1", "sp"))
ARM_OPERANDS = [
    ("8@x0", 8, False, X0),
    ("-4@w3", 4, True, Place(ARM["x3"].offset, 4, False)),
    ("8@sp", 8, False, SP),
    ("4@42", 4, False, Number(42)),
    ("-4@#-1", 4, True, Number(-1)),
    ("8@[sp]", 8, False, memory(SP, 8)),
    ("8@[sp, 16]", 8, False, memory(plus(SP, Number(16)), 8)),
    ("-4@[x0, #-8]", 4, True, memory(plus(X0, Number(-8)), 4)),
    ("8@[x0, x1]", 8, False, memory(plus(X0, Binary("SHL", X1, Number(0))), 8)),
    ("8@[x0, x1, lsl 3]", 8, False, memory(plus(X0, Binary("SHL", X1, Number(3))), 8)),
    ("4@[x0, w1, sxtw 2]", 4, False, memory(plus(X0, Binary("SHL", Place(ARM["x1"].offset, 4, True), Number(2))), 4)),
    ("8@[x0, x1, ror 3]", 8, False, None),
    ("8@xzr", 8, False, Number(0)),
    ("4@wzr", 4, False, Number(0)),
    ("8@[x0, #:lo12:nosuch]", 8, False, None),
]
CASES = [("x86_64", *case) for case in X86_OPERANDS] + [("aarch64", *case) for case in ARM_OPERANDS]


@pytest.mark.parametrize("machine, text, size, signed, meaning", CASES)
def test_operands(machine: str, text: str, size: int, signed: bool, meaning: Optional[Expression]) -> None:
    (operand,) = operands(text)
    assert operand == Operand(size, signed, text.partition("@")[2] or text)
    reach = Reach(MACHINES[machine], Spot("/bin/true", 0, 0), open_binary("/bin/true"))
    assert (read_x86 if machine == "x86_64" else read_arm64)(operand, reach) == meaning


def test_operands_in_the_page_of_a_symbol(tmp_path: Path) -> None:
    program = compiled(tmp_path / "program", "long counter[9]; int main() { return 0; }")
    binary = open_binary(str(program))
    address = binary.address_named("counter")
    assert address is not None
    reach = Reach(MACHINES["aarch64"], Spot(str(program), 0, 0), binary)
    for text, behind in (("8@[x0, #:lo12:counter]", 0), ("8@[x0, :lo12:counter+8]", 8)):
        (operand,) = operands(text)
        assert read_arm64(operand, reach) == memory(plus(X0, Number((address + behind) & 0xFFF)), 8)


def test_operands_of_a_note_apart() -> None:
    text = "8@%rdx -4@112(%rsp) 4@8(%rax,%rcx,4) -8@[x0, x1, lsl 3] 8f@%xmm0"
    found = [operand.text for operand in operands(text)]
    assert found == ["%rdx", "112(%rsp)", "8(%rax,%rcx,4)", "[x0, x1, lsl 3]", "%xmm0"]
    assert list(operands(text))[-1].size_bytes == 0


NOTED = (
    MARKERS
    + r"""
#include <stdlib.h>
long table[4] = { 10, 20, 30, 40 };
#ifdef __x86_64__
#define ALWAYS "-4@%[i] 8@%[t] 8@table+8(%%rip)"
#define GUARDED "-4@%[i] 8@$5"
#define PAGE
#else
#define ALWAYS "-4@%w[i] 8@%[t] 8@[%[page], #:lo12:table+8]"
#define GUARDED "-4@%w[i] 8@5"
#define PAGE , [page] "r" ((long)&table[1] & -4096)
#endif
int main(int argc, char **argv)
{
    int n = atoi(argv[1]), guarded = 0;
    for (long i = 0; i < n; i++) {
        MARK("always", "0", ALWAYS, [i] "r" ((int)-i), [t] "m" (table[i & 3]) PAGE);
        if (watchers) { guarded++; MARK("guarded", "watchers", GUARDED, [i] "r" ((int)i)); }
    }
    return guarded;
}
"""
)


@pytest.fixture(scope="module")
def noted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if os.uname().machine not in MACHINES:
        pytest.skip("the program's markers are written for x86-64 and arm64")
    return compiled(tmp_path_factory.mktemp("noted") / "noted", NOTED)


@pytest.mark.live
@pytest.mark.parametrize("tier", ["vm", "kernel"])
def test_markers_of_a_program_and_their_semaphore(noted: Path, tier: str) -> None:
    assert subprocess.run([str(noted), "5"]).returncode == 0
    script = f"""
    var calls = 0  var negative = 0  var held = 0  var second = 0  var guarded = 0
    trace sdt:{noted}:tested:always {{ calls += 1  negative += arg1  held += arg2  second += arg3 }}
    trace sdt:{noted}:guarded {{ guarded += arg2 }}
    trace_end {{ print(calls, negative, held, second, guarded) }}
    """
    traced = trace(script, [str(noted), "8"], tier=tier)
    assert traced.lines == [f"8\t{-28}\t{200}\t{160}\t{40}"]
    assert subprocess.run([str(noted), "5"]).returncode == 0


@pytest.mark.live
def test_operands_that_the_kernel_has_no_words_for_are_refused_where_they_are_read(noted: Path) -> None:
    """Without BPF. A register and an index were once refused whoever asked for another operand."""
    script = f"""
    var negative = 0  var second = 0
    trace sdt:{noted}:tested:always /arg1 < 0/ {{ negative += arg1  second += arg3 }}
    trace_end {{ print(negative, second) }}
    """
    assert trace(script, [str(noted), "8"], tier=EVENTS).lines == [f"{-28}\t{7 * 20}"]
    for more in ("arg2", "argstr"):
        with pytest.raises(Refusal, match="computed of more than a value and an offset"):
            trace(f"trace sdt:{noted}:tested:always {{ print({more}) }}", [str(noted), "1"], tier=EVENTS)


@pytest.mark.live
def test_markers_by_glob_and_their_text(noted: Path) -> None:
    script = f"trace sdt:{noted}:* {{ print(probename, argstr) }}"
    lines = trace(script, [str(noted), "1"]).lines
    assert [line.partition("(")[0] + line.partition(") ")[2] for line in lines] == [
        "always\talways: arg1=0 arg2=10 arg3=20",
        "guarded\tguarded: arg1=0 arg2=5",
    ]


@pytest.mark.live
@pytest.mark.parametrize("tier", ["vm", "kernel"])
def test_the_systems_python(tier: str) -> None:
    if not os.path.exists(PYTHON) or not markers(open_binary(os.path.realpath(PYTHON))):
        pytest.skip(f"{PYTHON} has no markers")
    script = f"""
    var collected = 0
    trace sdt:{PYTHON}:python:gc__done {{ collected += arg1 }}
    trace sdt:{PYTHON}:python:gc__start /arg1 == 2/ {{ starts[arg1] += 1 }}
    trace_end {{ print(collected >= 500, starts[2] >= 1) }}
    """
    code = "import gc\ngc.collect()\nfor _ in range(500):\n    a = []\n    a.append(a)\ndel a\ngc.collect()"
    assert trace(script, [PYTHON, "-S", "-E", "-c", code], tier=tier).lines == ["true\ttrue"]


@pytest.mark.live
@pytest.mark.parametrize("tier", ["vm", "kernel"])
def test_functions_that_the_systems_python_leaves(tier: str, tmp_path: Path) -> None:
    """Its markers tell file, name and line: strings that are read when the marker fires.

    (The one at a function's entry fires for generators alone in Python 3.11.)
    """
    if not os.path.exists(PYTHON) or "function__return" not in {
        marker.name for marker in markers(open_binary(os.path.realpath(PYTHON)))
    }:
        pytest.skip(f"{PYTHON} has no marker function__return")
    program = tmp_path / "program.py"
    program.write_text("def left(n): return n\nlist(map(left, range(3)))\n")
    script = f"""
    trace sdt:{PYTHON}:function__return {{
        print(user_string(arg1), user_string(arg2), arg3, arg4, arg0 == args.__probe_ip)
        if (user_string(arg2) == "left") {{ print("it left") }}
    }}
    """
    lines = trace(script, [PYTHON, "-S", "-E", str(program)], tier=tier).lines
    assert lines.count(f"{program}\tleft\t1\tnil\ttrue") == 3
    assert lines.count("it left") == 3


@pytest.mark.live
@pytest.mark.parametrize("tier", ["vm", "kernel"])
def test_exceptions_of_cxx_programs(tmp_path: Path, tier: str) -> None:
    text = """
    #include <stdexcept>
    int main() { for (int i = 0; i < 3; i++) try { throw std::runtime_error("x"); } catch (std::exception &) { } return 0; }
    """
    program = compiled(tmp_path / "throws", text, language="c++")
    script = """
    trace sdt:libstdc++:* { n[probename] += 1 }
    trace sdt:libstdc++.so.6:libstdcxx:throw { print(user_string(user_u64(arg2 + 8))) }
    trace_end { print(n.throw, n.catch) }
    """
    assert trace(script, [str(program)], tier=tier).lines == ["St13runtime_error"] * 3 + ["3\t3"]


@pytest.mark.live
def test_a_glob_that_means_too_many(noted: Path) -> None:
    with pytest.raises(Refusal) as caught:
        trace(f"trace sdt:{noted}:* {{ }}", duration_s=0.1, limits=Limits(probes=1))
    assert "matches 2 markers, more than 1" in caught.value.diagnostics[0].message
    assert "--max-probes 2" in str(caught.value.diagnostics[0].hint)


@pytest.mark.live
def test_what_is_not_there() -> None:
    for script, text in (
        ("trace sdt:/bin/true:x:y { }", "has no static markers"),
        (f"trace sdt:{PYTHON}:python:nosuch {{ }}", "has no marker `python:nosuch`"),
        (f"trace sdt:{PYTHON}:python:line%return {{ }}", "a marker has no return"),
    ):
        with pytest.raises(Refusal) as caught:
            trace(script, duration_s=0.1)
        assert text in caught.value.diagnostics[0].message

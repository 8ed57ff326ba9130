"""A handler whose program the kernel's verifier does not take runs in the VM, and one line says so."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from conftest import Ktap

from ktap.verifier import unfit

pytestmark = pytest.mark.live

VALUES, CALLS = 90, 20
COMMAND = (sys.executable, "-S", "-E", "-c", f"import os\nfor _ in range({CALLS}): os.getppid()")


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """Its first handler keeps more values at a time than a program has stack for; the second is an easy one."""
    lines = ["trace syscalls:sys_enter_getppid {"]
    lines += [f"    var v{n} = nsecs % {n + 3}" for n in range(VALUES)]
    products = " + ".join(f"v{n} * v{(37 * n + 11) % VALUES}" for n in range(VALUES))
    lines += [f"    var sum = {products}", "    print(sum >= 0)", "}"]
    lines += [
        "s = {}",
        "trace syscalls:sys_exit_getppid { s[probename] += 1 }",
        "trace_end { print(s.sys_exit_getppid) }",
    ]
    path = tmp_path / "many.kp"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_it_runs_in_the_vm_and_the_others_in_the_kernel(ktap: Ktap, script: Path) -> None:
    done = ktap("-q", str(script), "--", *COMMAND)
    assert done.stdout.split() == ["true"] * CALLS + [str(CALLS)]
    (notice,) = done.stderr.splitlines()
    assert notice.startswith(f"ktap: {script}:2: the handler runs in the VM: it is refused by the kernel's verifier: ")
    assert len(notice) < 300
    assert done.stdout == ktap("-q", "--tier", "vm", str(script), "--", *COMMAND).stdout


def test_explain_says_which_line(ktap: Ktap, script: Path) -> None:
    text = ktap("explain", str(script)).stdout
    assert re.search(r"^  VM +1  trace syscalls:sys_enter_getppid$", text, re.M)
    assert re.search(r"^  kernel +\d+  trace syscalls:sys_exit_getppid$", text, re.M)
    assert re.search(r"^ +why: line 2: it is refused by the kernel's verifier: .*\(.*\)$", text, re.M)
    assert "what would change it: keep fewer values at a time" in text


def test_the_kernel_tier_refuses_the_script(ktap: Ktap, script: Path) -> None:
    done = ktap("--tier", "kernel", str(script), "--", *COMMAND, status=1)
    assert done.stdout == ""
    head, line, caret = done.stderr.splitlines()
    assert head.startswith(
        f"{script}:2:14: `syscalls:sys_enter_getppid` stays in the VM: it is refused by the kernel's"
    )
    assert (line, caret.strip()) == ("    var v0 = nsecs % 3", "^^^^^")


def test_what_the_verifier_says_is_explained_where_it_is_known() -> None:
    assert str(unfit("R1 is no pointer")) == "is refused by the kernel's verifier: R1 is no pointer"
    large = unfit("BPF program is too large. Processed 1000001 insn")
    assert "too many steps" in str(large) and large.remedy

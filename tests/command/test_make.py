"""`make run` for somebody who may not trace, in a directory that root has set up."""

from __future__ import annotations

import os
import subprocess

import pytest
from conftest import NOBODY, ROOT

AS_NOBODY = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]


@pytest.mark.root
def test_without_privilege_a_recording_is_shown(environment: dict[str, str]) -> None:
    if subprocess.run([*AS_NOBODY, "test", "-r", ROOT / ".venv" / ".installed"], check=False).returncode:
        pytest.skip("needs a .venv that make has made and everybody may read")
    if not subprocess.run([*AS_NOBODY, "test", "-w", ROOT], check=False).returncode:
        pytest.skip("needs a directory that not everybody may write")
    before = sorted(os.listdir(ROOT))
    done = subprocess.run(
        [*AS_NOBODY, "make", "--silent", "-C", ROOT, "run"],
        env={"PATH": environment["PATH"], "HOME": "/nonexistent", "LC_ALL": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "cannot trace this machine" in done.stdout
    assert f"user {NOBODY} without CAP_BPF and CAP_PERFMON" in done.stdout
    assert "ktap --replay examples/syscalls.ktaprec scripts/syscalls_count.kp" in done.stdout
    assert "Distribution" in done.stdout
    assert "sudo make run" in done.stdout
    assert sorted(os.listdir(ROOT)) == before

"""Programs that are probed where nobody but their processes finds them, and what their calls have."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from c_program import WORK, compiled
from probed import run
from tracing import EVENTS, trace

from ktap.libraries import find_file

pytestmark = pytest.mark.live
TIERS = ("vm", "kernel", EVENTS)

STRINGS = r"""
#include <string.h>
static char text[6000];
__attribute__((noipa)) void both(const char *a, const char *b) {}
int main(void)
{
    memset(text, 'x', 4000);
    for (int i = 0; i < 10; i++) { both("a", "b"); both("ab", ""); both("", "ab"); both(text, "t"); both(text + 3000, text); }
    return 0;
}
"""


@pytest.mark.parametrize("tier", TIERS[:2])
def test_two_strings_of_a_call_are_one_key(tmp_path: Path, tier: str) -> None:
    program = compiled(tmp_path / "program", STRINGS)
    script = f"""
    trace probe:{program}:both {{ n[user_string(arg1), user_string(arg2)] += 1 }}
    trace_end {{ for (a, b, times in sort_pairs(n)) {{ print(len(a), len(b), times) }} }}
    """
    lines = run(script, program, tier=tier).lines
    assert lines == [f"{a}\t{b}\t10" for a, b in ((0, 2), (1, 1), (2, 0), (1000, 4000), (4000, 1))]


WAITING = r"""
#include <unistd.h>
__attribute__((noipa)) void here(void) {}
int main(void) { for (;;) { here(); usleep(5000); } }
"""


@pytest.mark.parametrize("tier", TIERS)
def test_a_program_that_was_deleted_is_probed_through_its_process(tmp_path: Path, tier: str) -> None:
    program = compiled(tmp_path / "program", WAITING)
    process = subprocess.Popen([str(program)])
    try:
        time.sleep(0.1)
        program.unlink()
        script = f"var n = 0 trace probe:/proc/{process.pid}/exe:here {{ n += 1 }} trace_end {{ print(n > 10) }}"
        assert trace(script, duration_s=0.5, tier=tier).lines == ["true"]
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize("tier", TIERS)
def test_a_file_of_a_container_is_not_taken_for_one_of_that_name_here(tmp_path: Path, tier: str) -> None:
    """The links of its process lead to names in its own file system."""
    if shutil.which("unshare") is None:
        pytest.skip("no unshare (apt-get install util-linux)")
    outer, inner = compiled(tmp_path / "program", WORK), tmp_path / "inside" / "program"
    inner.parent.mkdir()
    compiled(inner, WAITING)
    mount = f"mount --bind {inner.parent} {tmp_path} && exec {outer}"
    process = subprocess.Popen(["unshare", "-m", "--propagation", "private", "sh", "-c", mount])
    try:
        time.sleep(0.3)
        assert process.poll() is None
        for name in (f"/proc/{process.pid}/root{outer}", f"/proc/{process.pid}/exe"):
            found = find_file(name)
            assert found is not None
            assert os.path.samefile(found, inner)
            script = f"var n = 0 trace probe:{name}:here {{ n += 1 }} trace_end {{ print(n > 10) }}"
            assert trace(script, duration_s=0.5, tier=tier).lines == ["true"]
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


BUSY = r"""
__attribute__((noipa)) long busy(long n) { volatile long x = 0; for (long i = 0; i < n; i++) x += i; return x; }
int main(void) { for (;;) busy(100000); }
"""


@pytest.mark.parametrize("tier", TIERS)
def test_a_program_that_is_in_memory_alone_has_names(tmp_path: Path, tier: str) -> None:
    """Its file has a name that nobody can open, and a build id."""
    program = compiled(tmp_path / "program", BUSY, "-Wl,--build-id")
    code = f"""
    import os
    fd = os.memfd_create("unnamed", os.MFD_CLOEXEC)
    os.write(fd, open({str(program)!r}, "rb").read())
    os.execve(fd, ["unnamed"], os.environ)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])
    try:
        time.sleep(0.5)
        assert process.poll() is None
        script = f"""
        trace profile-499hz /pid == {process.pid}/ {{ s[ustack(1)] += 1 }}
        trace_end {{ print_hist(s, 1000) }}
        """
        others = [sys.executable, "-c", "import time; time.sleep(1)"]
        rows = trace(script, others, everyone=True, tier=tier).lines
        busy = [row for row in rows if "busy+0x" in row and "[memfd:unnamed" in row]
        assert busy, rows
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()

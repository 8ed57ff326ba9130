"""The same on another processor: arm64 kernels, emulated, each booted once. `make test-arm64` runs this, nothing else does."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from kernels import boot

ROOT = Path(__file__).resolve().parent.parent.parent
OF_KERNELS = ("tests/kernels/functions.py", "tests/kernels/forms.py", "tests/kernels/without_bpf.py")
ALL_TESTS = (
    *OF_KERNELS,
    "tests/live/test_counting.py",
    "tests/live/test_reads.py",
    "tests/live/test_filters.py",
    "tests/live/test_late_handlers.py",
    "tests/live/test_lowered_whole.py",
    "tests/live/test_without_bpf.py::test_values_are_the_same",
    "tests/user",
)
"""Run on the first kernel: functions of the kernel, system calls, and all that is tested of programs."""
TESTS = (
    *OF_KERNELS,
    "tests/live/test_counting.py::test_every_call_is_counted",
    "tests/live/test_reads.py::test_the_running_task",
    "tests/live/test_filters.py::test_strings_behind_a_data_loc",
    "tests/user/test_counters.py",
    "tests/user/test_functions.py::test_calls_returns_arguments_and_results",
    "tests/user/test_markers.py",
)
"""Run on the others."""
SLOW_ENOUGH = "not 4999hz and not 250us"
"""Left out are timers that an emulated processor can be late with."""
HANGS_S = 600
"""After so long it is told where a test is."""
TIMEOUT_S = 3600


@pytest.mark.root
@pytest.mark.parametrize("release", boot.ARM_KERNELS)
def test_on_arm64(release: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    tests = ALL_TESTS if release == next(iter(boot.ARM_KERNELS)) else TESTS
    options = ["-q", "-p", "no:cacheprovider", "-rs", "-k", SLOW_ENOUGH, "-o", f"faulthandler_timeout={HANGS_S}"]
    command = ["python3", "-m", "pytest", *options, *tests]
    output = io.BytesIO()
    try:
        status = boot.boot(release, command, output, boot.Machine(timeout_s=TIMEOUT_S))
    except boot.Unavailable as error:
        pytest.skip(str(error))
    text = output.getvalue().decode(errors="replace")
    print(text)
    assert status == 0, text

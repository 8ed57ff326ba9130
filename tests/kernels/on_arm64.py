"""The same on another processor: arm64 kernels, emulated, each booted once. `make test-arm64` runs this, nothing else does."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from kernels import boot

ROOT = Path(__file__).resolve().parent.parent.parent
TESTS = (
    "tests/live/test_counting.py",
    "tests/live/test_reads.py",
    "tests/live/test_filters.py",
    "tests/live/test_late_handlers.py",
    "tests/live/test_lowered_whole.py",
    "tests/live/test_without_bpf.py::test_values_are_the_same",
    "tests/kernels/functions.py",
    "tests/kernels/forms.py",
    "tests/kernels/without_bpf.py",
    "tests/user/test_argstr.py",
    "tests/user/test_compiled_functions.py",
    "tests/user/test_counters.py",
    "tests/user/test_fetched_memory.py",
    "tests/user/test_files_of_processes.py",
    "tests/user/test_functions.py",
    "tests/user/test_keeper.py",
    "tests/user/test_kernel_log.py",
    "tests/user/test_markers.py",
    "tests/user/test_recordings.py",
    "tests/user/test_returns.py",
    "tests/user/test_stacks.py",
    "tests/user/test_without_bpf.py",
)
SLOW_ENOUGH = "not 4999hz and not 250us"
"""Left out are timers that an emulated processor can be late with."""
TIMEOUT_S = 3600


@pytest.mark.root
@pytest.mark.parametrize("release", boot.ARM_KERNELS)
def test_on_arm64(release: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    command = ["python3", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rs", "-k", SLOW_ENOUGH, *TESTS]
    output = io.BytesIO()
    try:
        status = boot.boot(release, command, output, boot.Machine(timeout_s=TIMEOUT_S))
    except boot.Unavailable as error:
        pytest.skip(str(error))
    text = output.getvalue().decode(errors="replace")
    print(text)
    assert status == 0, text

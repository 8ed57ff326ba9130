"""Other kernels than this machine's, emulated: each is booted once and runs a few telling tests.

`make test-kernels` runs these alone. What they run is small, because an emulated processor is some twenty
times slower than the machine's own.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from kernels import boot

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TESTS = (
    "tests/live/test_counting.py::test_every_call_is_counted",
    "tests/live/test_reads.py::test_the_running_task",
    "tests/live/test_filters.py::test_strings_behind_a_data_loc",
    "tests/live/test_filters.py::test_globs_with_several_stars[*a*[bc]*d*]",
    "tests/user/test_functions.py::test_all_that_is_known_of_a_call",
    "tests/user/test_argstr.py::test_texts_agree[True-]",
    "tests/kernels/functions.py",
    "tests/kernels/forms.py",
    "tests/kernels/without_bpf.py",
    "tests/kernels/long_strings.py",
)
"""What is run there."""
TIMEOUT_S = 1800


@pytest.mark.root
@pytest.mark.parametrize("release", boot.KERNELS)
def test_on_another_kernel(release: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-rs", *TESTS]
    output = io.BytesIO()
    try:
        status = boot.boot(release, command, output, boot.Machine(timeout_s=TIMEOUT_S))
    except boot.Unavailable as error:
        pytest.skip(str(error))
    assert status == 0, output.getvalue().decode(errors="replace")

"""What all tests share: markers for what this machine must allow, and a way to run the ktap command.

Tests run in parallel (pytest-xdist) and share nothing but the machine: every one has its own cache of
compiled scripts below its own directory.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Iterator, Optional, Protocol

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent
NOBODY = 65534
TIMEOUT_S = 120

if "PYTEST_XDIST_WORKER" in os.environ:
    # Coverage is measured in the workers, not in what they start: that would be slow, and the files
    # could not be written by commands that run as another user or are killed.
    for name in [name for name in os.environ if name.startswith("COVERAGE_PROCESS")]:
        del os.environ[name]

settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")
"""How long an example takes says something about the machine's other work, nothing about ktap."""


class Ktap(Protocol):
    """Runs the ktap command: see the fixture `ktap`."""

    def __call__(
        self,
        *arguments: str,
        input: str = "",
        status: Optional[int] = 0,
        prefix: tuple[str, ...] = (),
        cwd: Optional[Path] = None,
    ) -> subprocess.CompletedProcess[str]: ...


COMMAND = (sys.executable, "-m", "ktap")


@cache
def why_not_live() -> str:
    """Why this machine cannot be traced, empty when it can."""
    doctor = subprocess.run([*COMMAND, "doctor", "--quiet"], capture_output=True, text=True, cwd=ROOT)
    return doctor.stdout.strip().replace("\n", "; ") if doctor.returncode else ""


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip, with the reason, what this machine does not allow."""
    if item.get_closest_marker("root") and os.geteuid() != 0:
        pytest.skip("needs root")
    if item.get_closest_marker("live") and why_not_live():
        pytest.skip(f"cannot trace here: {why_not_live()}")


@contextmanager
def sole_use(name: str) -> Iterator[None]:
    """Of what the machine has few of, among tests that run at the same time."""
    with open(Path(tempfile.gettempdir()) / f"ktap-test-{name}", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture
def watchpoints() -> Iterator[None]:
    """All of the processors' watchpoints, which are four."""
    with sole_use("watchpoints"):
        yield


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment with a cache of its own, from which ktap can be run in any directory."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "PYTHONPATH": str(ROOT),
        "NO_COLOR": "1",
        "LC_ALL": "C.UTF-8",
    }


@pytest.fixture
def ktap(environment: dict[str, str], tmp_path: Path) -> Ktap:
    """Run ktap with arguments, and check its exit status (None: any) and that it shows no traceback."""

    def run(
        *arguments: str,
        input: str = "",
        status: Optional[int] = 0,
        prefix: tuple[str, ...] = (),
        cwd: Optional[Path] = None,
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*prefix, *COMMAND, *arguments],
            input=input,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            env=environment,
            cwd=cwd or tmp_path,
            timeout=TIMEOUT_S,
        )
        assert "Traceback" not in done.stderr, done.stderr
        assert "internal error" not in done.stderr, done.stderr
        assert status is None or done.returncode == status, f"status {done.returncode}: {done.stderr}{done.stdout}"
        return done

    return run

"""What the README shows runs, and names every option."""

from __future__ import annotations

import shlex
import subprocess
import sys
from typing import Iterator

import pytest
from conftest import ROOT

from ktap.options import FLAGS, limit_flags

README = (ROOT / "README.md").read_text()


def commands() -> Iterator[str]:
    """The ktap commands of all blocks, each with the lines its quotes go over."""
    lines = iter(README.splitlines())
    for line in lines:
        if line.startswith("$ ktap "):
            command = line[2:]
            while command.count("'") % 2:
                command += "\n" + next(lines)
            yield command


def scripts() -> Iterator[str]:
    """The scripts of blocks of their own."""
    for part in README.split("```lua\n")[1:]:
        yield part.partition("```")[0]


def test_there_are_commands() -> None:
    assert len(list(commands())) >= 10
    assert list(scripts())


@pytest.mark.live
@pytest.mark.parametrize("command", list(commands()))
def test_command(command: str, environment: dict[str, str]) -> None:
    words = shlex.split(command)
    done = subprocess.run(
        [sys.executable, "-m", *words], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout or "-o" in words
    assert all(line.startswith("ktap: ") for line in done.stderr.splitlines())


@pytest.mark.live
@pytest.mark.parametrize("script", list(scripts()))
def test_script(script: str, environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ktap", "-q", "-d", "2", "-"],
        input=script,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("that was all\n")


@pytest.mark.parametrize("flag", [*FLAGS, *limit_flags().values()], ids=lambda flag: flag.spellings[0])
def test_every_option_is_named(flag: object) -> None:
    assert all(spelling in README for spelling in flag.spellings)  # type: ignore[attr-defined]

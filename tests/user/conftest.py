"""The compiled programs of these tests, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
from c_program import WORK, compiled, many_functions


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("work") / "work", WORK)


@pytest.fixture(scope="session")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same program, always at the same addresses."""
    return compiled(tmp_path_factory.mktemp("fixed") / "fixed", WORK, "-no-pie")


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("many") / "many", many_functions())

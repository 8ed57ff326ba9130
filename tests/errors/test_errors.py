"""What a user reads when a script is wrong: each NAME.kp here beside NAME.expected, word for word.

After a change that is meant, `python tests/errors/test_errors.py` from the top writes the expected texts anew.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from compiler.compile import compile_source
from vm.diagnostic import Refusal

HERE = Path(__file__).parent
SCRIPTS = sorted(HERE.glob("*.kp"))


def told(path: Path) -> str:
    """All that is said of a script: its errors, or its warnings where it compiles."""
    source = path.read_bytes()
    try:
        warnings = compile_source(source, path.name).warnings
    except Refusal as refusal:
        return refusal.render() + "\n"
    return "".join(warning.render(source.decode("utf-8", "surrogateescape")) + "\n" for warning in warnings)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_told(path: Path) -> None:
    text = told(path)
    assert text
    assert text == path.with_suffix(".expected").read_text()


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_every_error_shows_its_line(path: Path) -> None:
    lines = path.read_bytes().decode("utf-8", "surrogateescape").split("\n")
    try:
        diagnostics = compile_source(path.read_bytes(), path.name).warnings
    except Refusal as refusal:
        diagnostics = refusal.diagnostics
    for diagnostic in diagnostics:
        assert diagnostic.span is not None
        assert 1 <= diagnostic.span.line <= len(lines)
        assert 1 <= diagnostic.span.column <= len(lines[diagnostic.span.line - 1]) + 1


def test_nothing_is_expected_of_no_script() -> None:
    assert {path.stem for path in HERE.glob("*.expected")} == {path.stem for path in SCRIPTS}


if __name__ == "__main__":
    for script in SCRIPTS:
        script.with_suffix(".expected").write_text(told(script))

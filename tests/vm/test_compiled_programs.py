"""What the compiler makes: it passes the verifier, survives an image, and is the same bytes every time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from corpus import all_cases

from compiler.compile import compile_source
from vm.diagnostic import Refusal
from vm.disassemble import disassemble
from vm.image import dump, load
from vm.program import MAX_CODE, MAX_INSTRUCTIONS
from vm.verify import verify

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPTS = sorted([*(ROOT / "scripts").rglob("*.kp"), *(ROOT / "examples").rglob("*.kp")])
DIGEST = """
import sys
from binascii import crc32
from compiler.compile import compile_source
from vm.image import dump
for path in sys.argv[1:]:
    print(crc32(dump(compile_source(open(path).read(), path).program)))
"""


def check(text: str, name: str) -> None:
    program = compile_source(text, name).program
    verify(program)
    image = dump(program)
    assert load(image) == program
    assert dump(load(image)) == image
    assert dump(compile_source(text, name).program) == image
    assert disassemble(program).count("\n\n") == len(program.functions)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts(path: Path) -> None:
    check(path.read_text(), path.name)


def test_cases() -> None:
    compiled = 0
    for case in all_cases():
        try:
            check(case.source, case.path.name)
            compiled += 1
        except Refusal as refusal:
            assert case.diagnostics, refusal.render()
    assert compiled > 50


def test_the_bytes_do_not_depend_on_the_process() -> None:
    """Sets and dictionaries of strings come out in another order for another hash seed."""
    paths = [str(case.path) for case in all_cases() if not case.diagnostics] + list(map(str, SCRIPTS))
    digests = {
        subprocess.run(
            [sys.executable, "-c", DIGEST, *paths],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(digests) == 1


LARGE = "var t = {}\n" + "".join(f"t[{n}] = {n} + t[{n + 1}] .. 'x{n}'\n" for n in range(8_000))
NESTED = "for (a = 1, 2) { " * 60 + "print(1)" + " }" * 60
CHAIN = (
    "var x = 1\n" + "if (x == 0) { print(0) }" + "".join(f" elseif (x == {n}) {{ print({n}) }}" for n in range(2_000))
)


@pytest.mark.parametrize("text", [LARGE, CHAIN], ids=["long", "chain"])
def test_large_scripts(text: str) -> None:
    """They compile to a program that passes, or are refused by the compiler itself with a place."""
    try:
        check(text, "large.kp")
    except Refusal as refusal:
        assert all(diagnostic.span is not None for diagnostic in refusal.diagnostics), refusal.render()
        assert "bytecode refused" not in refusal.render()


def test_loops_in_loops() -> None:
    check(NESTED, "nested.kp")


def test_too_large_a_script_is_refused_with_a_place() -> None:
    assert MAX_INSTRUCTIONS <= MAX_CODE
    text = "".join(f"print({n}, {n + 1})\n" for n in range(MAX_INSTRUCTIONS // 4 + 1))
    with pytest.raises(Refusal) as refusal:
        verify(compile_source(text, "large.kp").program)
    assert refusal.value.diagnostics[0].span is not None
    assert "bytecode refused" not in refusal.value.render()

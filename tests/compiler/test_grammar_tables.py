"""The parser's tables: kept, read again, and made anew whenever what was kept is not what it should be."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Callable

import pytest

from compiler import tables
from compiler.build import Builder
from compiler.parse import parse

STARTS = ("script", "event_list")
ROOT = Path(tables.__file__).parent.parent


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the tables are kept in this test."""
    monkeypatch.setattr(tables, "cache_directories", lambda: [tmp_path / "cache"])
    return tmp_path / "cache" / "grammar.json"


def reads(builder: Builder) -> int:
    """How many statements the parser of these tables finds in a script of two."""
    parser = tables.load("grammar.lark", STARTS, builder)
    statements = parser.parse("x = 1 trace a:b { }", start="script")
    assert isinstance(statements, list)
    return len(statements)


def test_made_then_kept_then_read(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert reads(Builder()) == 2
    written = kept.read_bytes()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o644
    monkeypatch.delattr(tables.lark.Lark, "__init__")  # nothing is built any more
    assert reads(Builder()) == 2
    assert kept.read_bytes() == written
    assert os.listdir(kept.parent) == ["grammar.json"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: data[:200] + b"?" + data[201:],
        lambda data: b"?" + data[1:],
        lambda data: data + b" ",
        lambda data: data.split(b"\n")[0],
        lambda data: b"\x80\x04\x95" + data,
        lambda data: b"[" * 100_000,
    ],
)
def test_damaged_tables_are_made_anew(
    kept: Path, damage: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert reads(Builder()) == 2
    kept.write_bytes(damage(kept.read_bytes()))
    assert reads(Builder()) == 2
    monkeypatch.delattr(tables.lark.Lark, "__init__")
    assert reads(Builder()) == 2


def test_tables_of_another_grammar_are_not_taken(kept: Path) -> None:
    assert reads(Builder()) == 2
    tables.load("grammar.lark", ("script",), Builder())
    assert reads(Builder()) == 2


def test_a_directory_in_the_way(kept: Path) -> None:
    kept.mkdir(parents=True)
    assert reads(Builder()) == 2
    assert os.listdir(kept.parent) == ["grammar.json"]


def test_nowhere_to_keep_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(tables, "cache_directories", lambda: [tmp_path / "file" / "a", Path("/proc/none")])
    assert reads(Builder()) == 2


def test_the_second_place_serves_where_the_first_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(tables, "cache_directories", lambda: [tmp_path / "file", tmp_path / "second"])
    assert reads(Builder()) == 2
    assert json.loads((tmp_path / "second" / "grammar.json").read_bytes().split(b"\n", 1)[1])


def test_where_they_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/some/where")
    assert tables.cache_directories() == [ROOT / "compiler" / "__pycache__", Path("/some/where/ktap")]
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/me")
    assert tables.cache_directories()[1] == Path("/home/me/.cache/ktap")


def test_many_at_once(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from compiler import tables\n"
        "tables.cache_directories = lambda: [Path(sys.argv[1])]\n"
        "from compiler.parse import parse\n"
        "print(len(parse('x = 1 trace a:b { }', 't.kp').script.body.body))\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}

    def run(_: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)

    with ThreadPoolExecutor() as pool:
        runs = list(pool.map(run, range(6)))
    assert [(run.stdout, run.stderr) for run in runs] == [("2\n", "")] * 6
    assert os.listdir(tmp_path) == ["grammar.json"]


def test_kept_tables_read_the_same_trees(kept: Path) -> None:
    text = "var a = {1, [2] = 3} trace x:y /z == 1/ { f(a[1].b) }"
    built = tables.load("grammar.lark", STARTS, Builder()).parse(text, start="script")
    loaded = tables.load("grammar.lark", STARTS, Builder()).parse(text, start="script")
    assert kept.exists()
    assert tuple(built) == tuple(loaded) == parse(text, "t.kp").script.body.body

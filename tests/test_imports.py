"""Who may import whom: ktap -> compiler -> vm -> the standard library, and each foreign library in its place.

Read from the syntax trees of all modules, so that imports within functions count too.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Iterator, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = {"vm": ("vm",), "compiler": ("compiler", "vm"), "ktap": ("ktap", "compiler", "vm")}
"""What each package may import of ours."""
PARSER = ("compiler/parse.py", "compiler/build.py", "compiler/place.py", "compiler/tables.py")
"""The modules of the parser; what needs it imports it within functions."""
FOREIGN = {
    "lark": PARSER,
    "llvmlite": ("compiler/bpf.py",),
    "bcc": ("ktap/libbcc.py",),
    "elftools": ("ktap/elf.py",),
    "rich": ("ktap/terminal.py",),
}
"""The modules that may import a library that is not the standard one."""
LAZY = ("llvmlite", "bcc", "elftools", "rich")
"""Never imported when the module that uses it is."""


class Import(NamedTuple):
    """One import of one module."""

    importer: str
    line: int
    module: str
    names: tuple[str, ...]
    lazy: bool
    """Within a function, or only for type checkers."""

    @property
    def place(self) -> str:
        return f"{self.importer}:{self.line} imports {self.module}"


def imports_of(path: Path) -> Iterator[Import]:
    importer = str(path.relative_to(ROOT))
    tree = ast.parse(path.read_text())
    deferred = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) or is_type_checking(node)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(importer, node.lineno, alias.name, (), node in deferred)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{importer}:{node.lineno}: a relative import"
            names = tuple(alias.name for alias in node.names)
            yield Import(importer, node.lineno, str(node.module), names, node in deferred)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


IMPORTS = [found for package in OURS for path in sorted((ROOT / package).rglob("*.py")) for found in imports_of(path)]


def broken(rule: object) -> list[str]:
    return [found.place for found in IMPORTS if not rule(found)]  # type: ignore[operator]


def test_the_check_sees_the_modules() -> None:
    seen = {found.importer.split("/")[0] for found in IMPORTS}
    assert seen == set(OURS)
    assert any(found.lazy for found in IMPORTS)
    for library, places in FOREIGN.items():
        users = {found.importer for found in IMPORTS if found.module.split(".")[0] == library}
        assert users, f"nothing imports {library}"
        assert users <= set(places)


def test_packages_import_downwards_only() -> None:
    def allowed(found: Import) -> bool:
        package, top = found.importer.split("/")[0], found.module.split(".")[0]
        return top in OURS[package] or top in sys.stdlib_module_names or found.importer in FOREIGN.get(top, ())

    assert broken(allowed) == []


def test_heavy_libraries_are_imported_when_they_are_needed() -> None:
    assert broken(lambda found: found.lazy or found.module.split(".")[0] not in LAZY) == []


def test_the_parser_is_imported_when_it_is_needed() -> None:
    parser = {path[: -len(".py")].replace("/", ".") for path in PARSER}

    def allowed(found: Import) -> bool:
        modules = {found.module, *(f"{found.module}.{name}" for name in found.names)}
        return found.lazy or found.importer in PARSER or not modules & parser

    assert broken(allowed) == []


def test_nobody_imports_what_is_private() -> None:
    ours = tuple(f"{package}." for package in OURS)

    def allowed(found: Import) -> bool:
        return not found.module.startswith(ours) or not any(name.startswith("_") for name in found.names)

    assert broken(allowed) == []


def test_named_tuples_are_those_that_are_made_quickly() -> None:
    users = {found.importer for found in IMPORTS if found.module == "typing" and "NamedTuple" in found.names}
    assert users == {"vm/named_tuple.py"}


STARTED = """
import sys
{}
heavy = {{"lark", "llvmlite", "bcc", "rich", "dataclasses", "inspect", "ctypes", "json", "subprocess"}}
print(*sorted(heavy & set(sys.modules)))
"""


@pytest.mark.parametrize(
    "statement",
    [
        "import ktap.cli",
        "import ktap.cache",
        "import ktap.options",
        "import ktap.session, ktap.live_host; ktap.live_host.LiveHost()",
        "import vm.image, vm.verify, vm.machine",
        "import vm.__main__",
    ],
)
def test_start_up_imports_nothing_heavy(statement: str) -> None:
    done = subprocess.run(
        [sys.executable, "-S", "-c", STARTED.format(statement)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "\n"

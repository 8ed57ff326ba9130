"""The parser's tables: built from a grammar by lark once, and kept in the user's cache as JSON.

JSON and not lark's own cache, which is a pickle: reading a damaged or foreign file can at worst fail,
and then the tables are built again. A cache that cannot be written is no error.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any, Optional

import lark
from lark.grammar import Rule
from lark.lexer import TerminalDef

Tables = dict[str, Any]
HERE = Path(__file__).parent


def cache_directory() -> Path:
    """`$XDG_CACHE_HOME/ktap`, or `~/.cache/ktap` where that is unset or relative."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(base) if os.path.isabs(base) else Path(os.path.expanduser("~")) / ".cache"
    return root / "ktap"


def load(grammar: str, starts: tuple[str, ...], builder: object) -> lark.Lark:
    """The LALR parser of the file `grammar` beside this one.

    A method of `builder` named as a rule (or its alias) is called with the list of the rule's children
    whenever one is complete, and gives the value of that rule.
    """
    text = (HERE / grammar).read_text(encoding="utf-8")
    identity = "\0".join((lark.__version__, text, *starts))
    key = hashlib.sha256(identity.encode()).hexdigest()
    path = cache_directory() / f"{Path(grammar).stem}-{key[:16]}.json"
    tables = _read(path, key)
    if tables is None:
        tables = _build(text, starts)
        _write(path, key, tables)
    return _parser(tables, builder)


def _build(text: str, starts: tuple[str, ...]) -> Tables:
    """Lark's description of its own parser, as JSON gives it back."""
    parser = lark.Lark(
        text,
        parser="lalr",
        lexer="contextual",
        start=list(starts),
        keep_all_tokens=True,
        maybe_placeholders=False,
        g_regex_flags=re.ASCII,
    )
    data, memo = parser.memo_serialize([TerminalDef, Rule])
    tables: Tables = json.loads(json.dumps({"data": data, "memo": memo}))
    return tables


def _parser(tables: Tables, builder: object) -> lark.Lark:
    """A parser from its tables: JSON has made strings of their numeric keys."""
    data = tables["data"]
    table = data["parser"]["parser"]
    table["tokens"] = _numbered(table["tokens"])
    table["states"] = {int(state): _numbered(actions) for state, actions in table["states"].items()}
    data["options"]["transformer"] = builder
    return lark.Lark.load({"data": data, "memo": _numbered(tables["memo"])})


def _numbered(table: Tables) -> dict[int, Any]:
    return {int(key): value for key, value in table.items()}


def _read(path: Path, key: str) -> Optional[Tables]:
    """The tables in a cache file, None where there is none or it is not what was written."""
    try:
        head, body = path.read_bytes().split(b"\n", 1)
        if head.decode() != key + hashlib.sha256(body).hexdigest():
            return None
        tables: Tables = json.loads(body)
        return tables
    except (OSError, ValueError, RecursionError):
        return None


def _write(path: Path, key: str, tables: Tables) -> None:
    """Put the tables in place in one step, so that a reader never sees half of them."""
    body = json.dumps(tables, separators=(",", ":")).encode()
    head = (key + hashlib.sha256(body).hexdigest()).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem)
    except OSError:
        return  # nowhere to keep it: the next run builds it again
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(head + b"\n" + body)
        os.replace(name, path)
    except OSError:
        os.unlink(name)

"""The parser's tables: lark builds them from a grammar once, and they are kept as JSON.

They are kept where Python keeps compiled modules, in `__pycache__` beside the grammar, or in the user's cache
where that cannot be written. JSON and not lark's own cache, which is a pickle: to read a damaged or a
foreign file can at worst fail, and then the tables are built again. It is no error if nothing can be kept.
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


def cache_directories() -> list[Path]:
    """Where tables are kept, in the order they are looked for; the second as XDG base directories have it."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(base) if os.path.isabs(base) else Path(os.path.expanduser("~")) / ".cache"
    return [HERE / "__pycache__", root / "ktap"]


def load(grammar: str, starts: tuple[str, ...], builder: object) -> lark.Lark:
    """The LALR parser of the file `grammar` beside this one.

    A method of `builder` named as a rule (or its alias) is called with the list of the rule's children
    whenever one is complete, and gives the value of that rule.
    """
    text = (HERE / grammar).read_text(encoding="utf-8")
    identity = "\0".join((lark.__version__, text, *starts))
    key = hashlib.sha256(identity.encode()).hexdigest()
    paths = [directory / f"{Path(grammar).stem}.json" for directory in cache_directories()]
    for path in paths:
        tables = _read(path, key)
        if tables is not None:
            return _parser(tables, builder)
    parser = lark.Lark(
        text,
        parser="lalr",
        lexer="contextual",
        start=list(starts),
        keep_all_tokens=True,
        maybe_placeholders=False,
        g_regex_flags=re.ASCII,
        transformer=builder,  # lark only looks for methods by the names of rules
    )
    tables = _tables(parser)
    any(_write(path, key, tables) for path in paths)  # the first that can be written
    return parser


def _tables(parser: lark.Lark) -> Tables:
    """Lark's description of its own parser, without the builder."""
    data, memo = parser.memo_serialize([TerminalDef, Rule])
    del data["options"]["transformer"]
    return {"data": data, "memo": memo}


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
    """The tables in a file, None where there is none or it is not as it was written, for this grammar."""
    try:
        head, _, body = path.read_bytes().partition(b"\n")
    except OSError:
        return None
    if head != _seal(key, body):
        return None
    tables: Tables = json.loads(body)
    return tables


def _seal(key: str, body: bytes) -> bytes:
    """The first line of a file: what tells that the rest belongs to the grammar and is whole."""
    return (key + hashlib.sha256(body).hexdigest()).encode()


def _write(path: Path, key: str, tables: Tables) -> bool:
    """Put the tables in place in one step, so that a reader never sees half of them; False where that fails."""
    body = json.dumps(tables, separators=(",", ":")).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem)
    except OSError:
        return False
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(_seal(key, body) + b"\n" + body)
            os.fchmod(handle, 0o644)
        os.replace(name, path)
    except OSError:
        os.unlink(name)
        return False
    return True

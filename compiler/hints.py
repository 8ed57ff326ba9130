"""What to say of a syntax error: how the text at its place reads, and what was probably meant."""

from __future__ import annotations

import re
from typing import Collection, NamedTuple, Optional

from compiler.skim import CLOSERS, SKIM
from compiler.spell import suggest

WORDS = {
    "elif": "did you mean 'elseif'?",
    "elsif": "did you mean 'elseif'?",
    "elseif": "an elseif follows the block of an if",
    "else": "an else follows the block of an if",
    "until": "an until follows the block of a repeat",
    "then": "the block of an if stands in { }",
    "do": "the block of a loop stands in { }",
    "end": "a block ends with '}'",
    "begin": "did you mean 'trace_begin'?",
    "fn": "did you mean 'function'?",
    "func": "did you mean 'function'?",
    "fun": "did you mean 'function'?",
    "def": "did you mean 'function'?",
    "let": "did you mean 'var'?",
    "const": "did you mean 'var'?",
    "int": "did you mean 'var'?",
    "probe": "did you mean 'trace'?",
    "foreach": "did you mean 'for'?",
    "goto": "there is no goto",
    "switch": "there is no switch; use if and elseif",
    "tick": "a timer is written without blanks: tick-1s { }",
    "profile": "a timer is written without blanks: profile-99hz { }",
}
"""By a word that stands where a statement does or where the error is."""

SIGNS = {
    "~=": "did you mean '!='?",
    "=": "did you mean '=='?",
    "==": "did you mean '='?",
    "!=": "a comparison is no statement",
    "++": "did you mean '+= 1'?",
    "--": "did you mean '-= 1'? A comment starts with '#'",
    "//": "a comment starts with '#'",
    "/*": "a comment starts with '#'",
    "->": "a member is read with '.'",
    "=>": "did you mean '>='?",
    "?": "there is no ?: operator; use 'c && a || b'",
    ":": "there are no methods; call t.f(t)",
    "`": "a kernel symbol is written `name`",
    "[[": "']]' is missing",
}
"""By what stands where the error is."""

BEGINNERS = ("if", "elseif", "while", "for", "until")
"""Keywords that a condition in brackets follows."""


class Opening(NamedTuple):
    """An open bracket, with its place and the depth of the parser's stack behind it."""

    bracket: str
    line: int
    column: int
    depth: int


class Mistake(NamedTuple):
    """Where a parser could not go on."""

    source: str
    offset: int
    """Characters before the place of the error."""
    behind: int
    """Characters before the end of the last token."""
    expected: Collection[str]
    """Terminals of the grammar that could have come."""
    before: str
    """The terminal before it, empty at the start."""
    opening: Optional[Opening]
    """The innermost open bracket."""


class Explanation(NamedTuple):
    """What to tell: characters `start` … `end` of the source are wrong, and why."""

    start: int
    end: int
    message: str
    hint: Optional[str]


def show(text: str, width: int = 40) -> str:
    """Text of a script as a message quotes it: on one line, not too long, nothing invisible."""
    text = text if len(text) <= width else text[:width] + "…"
    return "".join(c if c.isprintable() else f"\\x{ord(c) & 0xFF:02x}" if ord(c) != 10 else "\\n" for c in text)


def misspelt(word: str) -> Optional[str]:
    """The keyword that was meant by a word before `(condition) { }`; None where it is just a name."""
    known = WORDS.get(word)
    near = suggest(word, BEGINNERS)
    return known or (f"did you mean '{near}'?" if near is not None else None)


def explain(mistake: Mistake) -> Explanation:
    """The message for a syntax error: few words, and right rather than many."""
    source, offset = mistake.source, mistake.offset
    found = SKIM.match(source, offset)
    if found is None:
        return Explanation(mistake.behind, mistake.behind, "unexpected symbol near '<eof>'", _of_end(mistake))
    text = found[0]
    unfinished = _unfinished(mistake, text)
    if unfinished is not None:
        return unfinished
    start, end = offset, found.end()
    number = re.compile(r"\d+\.\d\w*").match(source, _number_start(source, offset))
    if number is not None and number.end() > offset:
        start, end = number.span()
        hint: Optional[str] = "there are no floats"
    else:
        hint = _of_text(mistake, text, found.lastgroup or "")
    return Explanation(start, end, f"unexpected symbol near '{show(source[start:end])}'", hint)


def _number_start(source: str, offset: int) -> int:
    while offset > 0 and source[offset - 1].isdigit():
        offset -= 1
    return offset


def _unfinished(mistake: Mistake, text: str) -> Optional[Explanation]:
    """A string or a filter that is not closed."""
    start = mistake.offset
    newline = mistake.source.find("\n", start)
    line_end = newline if newline >= 0 else len(mistake.source)
    if text in ("'", '"'):
        return Explanation(start, line_end, "unterminated string", f"{text} is missing at its end")
    if text == "[[" and "RAW" in mistake.expected:
        return Explanation(start, start + 2, "unterminated raw string", SIGNS[text])
    if mistake.source[start] == "/" and "FILTER" in mistake.expected:
        return Explanation(start, line_end, "unterminated filter", "'/' is missing at its end")
    return None


def _of_end(mistake: Mistake) -> Optional[str]:
    opening = mistake.opening
    if opening is not None:
        return f"the '{opening.bracket}' at {opening.line}:{opening.column} is not closed"
    return _of_expected(mistake)


def _of_text(mistake: Mistake, text: str, kind: str) -> Optional[str]:
    """The hint for what was found; what it says beats what was expected."""
    opening = mistake.opening
    if kind == "number" and not re.fullmatch(r"0[xX][0-9a-fA-F]+|\d+", text):
        return "there are no floats" if re.fullmatch(r"\d+(\.\d*)?([eE]\d*)?", text) else "this is no number"
    if text in CLOSERS:
        if opening is None:
            return f"no '{CLOSERS[text]}' is open"
        if opening.bracket != CLOSERS[text]:
            return f"the '{opening.bracket}' at {opening.line}:{opening.column} is not closed"
    if text in ("+", "-") and mistake.source[mistake.offset - 1 : mistake.offset] == text:
        return SIGNS[text * 2]
    if text == "=" and "COMPARE" not in mistake.expected:
        return _of_expected(mistake)
    return SIGNS.get(text) or WORDS.get(text) or _of_expected(mistake)


def _of_expected(mistake: Mistake) -> Optional[str]:
    """The hint where only one thing could have come."""
    expected = set(mistake.expected)
    if "EVENT" in expected:
        return "an event must follow, such as trace syscalls:* { }"
    if "FILTER" in expected or expected == {"LBRACE", "FUNCTION"}:
        return "a block { } must follow"
    if expected == {"LBRACE"}:
        return "a block { } must follow"
    if expected == {"UNTIL"}:
        return "repeat { } ends with until (condition)"
    if expected == {"LPAR"} and mistake.before in ("IF", "ELSEIF", "WHILE", "UNTIL", "FOR"):
        return f"( ) must follow '{mistake.before.lower()}'"
    return None

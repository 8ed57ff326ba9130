"""What to say of a syntax error: how the text at its place reads, and what was probably meant."""

from __future__ import annotations

import re
from typing import Collection, Optional

from compiler.skim import CLOSERS, KEYWORDS, SKIM
from vm.named_tuple import NamedTuple

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
    "BEGIN": "did you mean 'trace_begin'?",
    "END": "did you mean 'trace_end'?",
    "kprobe": "write trace probe:NAME { }",
    "kretprobe": "write trace probe:NAME%return { }",
    "uprobe": "write trace probe:/PATH:NAME { }",
    "uretprobe": "write trace probe:/PATH:NAME%return { }",
    "usdt": "write trace sdt:/PATH:PROVIDER:NAME { }",
    "tracepoint": "write trace GROUP:EVENT { }",
    "rawtracepoint": "write trace raw:NAME { }",
    "interval": "write tick-1s { }",
    "fn": "did you mean 'function'?",
    "func": "did you mean 'function'?",
    "fun": "did you mean 'function'?",
    "def": "did you mean 'function'?",
    "let": "did you mean 'var'?",
    "const": "did you mean 'var'?",
    "int": "did you mean 'var'?",
    "probe": "did you mean 'trace'?",
    "foreach": "did you mean 'for'?",
    "unless": "did you mean 'if (!…)'?",
    "goto": "there is no goto",
    "switch": "there is no switch; use if and elseif",
    "tick": "a timer is written without blanks: tick-1s { }",
    "profile": "a timer is written without blanks: profile-99hz { }",
}
"""By a word that stands where a statement does or where the error is."""

SIGNS = {
    "~=": "did you mean '!='?",
    "<>": "did you mean '!='?",
    "=>": "did you mean '>='?",
    "=<": "did you mean '<='?",
    "=": "did you mean '=='?",
    "==": "did you mean '='?",
    "++": "did you mean '+= 1'?",
    "--": "did you mean '-= 1'? A comment starts with '#'",
    "//": "a comment starts with '#'",
    "/*": "a comment starts with '#'",
    "->": "a member is read with '.'",
    "?": "there is no ?: operator; use 'c && a || b'",
    ":": "there are no methods; call t.f(t)",
    "@": "no sign marks a variable; write t[k]",
    "$": "no sign marks a variable; write var x = 1",
    "`": "a kernel symbol is written `name`",
    "[[": "']]' is missing",
}
"""By what stands where the error is."""
PAIRS = ("++", "--", "->", "//", "/*")
"""Those of `SIGNS` whose first half an expression may go on with."""
ASSIGNMENTS = {"=": "COMPARE", "==": "EQUAL"}
"""The terminal that must have been possible for what `SIGNS` says of these."""

CLOSING = {"(": "RPAR", "[": "RSQB", "{": "RBRACE"}
"""The terminals that close brackets."""
OPERATORS = frozenset(
    ["+", "-", "*", "/", "%", "<", ">", "&", "|", "^", "&&", "||", "<<", ">>", "..", "!=", "<=", ">="]
)
NO_FLOATS = "there are no floats"
INTEGER = re.compile(r"0[xX][0-9a-fA-F]+|\d+", re.ASCII)
FLOAT = re.compile(r"\d*\.\d\w*|\d+[eE]\d*", re.ASCII)
FIRST_WORD = re.compile(r"[\s}]*([A-Za-z_]\w*)", re.ASCII)
LONE_TARGET = re.compile(r"\s*[A-Za-z_][\w.]*\s*", re.ASCII)
TIMER = re.compile(r"\s*((?:tick|profile)-\d\w*)\s*")
TIMER_WORD = re.compile(r"(?:tick|profile)\s*\Z")


class Opening(NamedTuple):
    """An open bracket, with its place and the depth of the parser's stack behind it."""

    bracket: str
    line: int
    column: int
    depth: int
    is_block: bool

    @property
    def unclosed(self) -> str:
        """What is wrong with it."""
        return f"the '{self.bracket}' at {self.line}:{self.column} is not closed"


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

    @property
    def line_before(self) -> str:
        """The part of its line before it."""
        return self.source[self.source.rfind("\n", 0, self.offset) + 1 : self.offset]

    @property
    def is_fresh(self) -> bool:
        """Whether it is the first thing on its line."""
        return "\n" in self.source[self.behind : self.offset]


class Explanation(NamedTuple):
    """What to tell: characters `start` … `end` of the source are wrong, and why."""

    start: int
    end: int
    message: str
    hint: Optional[str]


def show(text: str, width: int = 40) -> str:
    """Text of a script as a message quotes it: on one line, not too long, nothing invisible."""
    text = text if len(text) <= width else text[:width] + "…"
    return "".join(c if c.isprintable() else f"\\x{ord(c) & 0xFF:02x}" if c != "\n" else "\\n" for c in text)


def explain(mistake: Mistake) -> Explanation:
    """The message for a syntax error: few words, and right rather than many."""
    source, start = mistake.source, mistake.offset
    found = SKIM.match(source, start)
    if found is None:
        hint = mistake.opening.unclosed if mistake.opening is not None else _of_expected(mistake)
        return Explanation(mistake.behind, mistake.behind, "unexpected symbol near '<eof>'", hint)
    unfinished = _unfinished(mistake, found[0])
    if unfinished is not None:
        return unfinished
    end = found.end()
    number = FLOAT.match(source, _number_start(source, start))
    pair = source[max(start - 1, 0) : start + 1]
    if number is not None and number.end() > start:
        start, end, hint = number.start(), number.end(), NO_FLOATS
    elif pair in PAIRS:
        start, hint = start - 1, SIGNS[pair]
    else:
        hint = _of_text(mistake, found[0], found.lastgroup or "")
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


def _of_text(mistake: Mistake, text: str, kind: str) -> Optional[str]:
    """The hint for what was found; what it says beats what was expected."""
    if kind == "number" and not INTEGER.fullmatch(text):
        return "this is no number"
    if text in CLOSERS:
        return _of_closer(mistake.opening, CLOSERS[text])
    if text == "{" and mistake.opening is not None and not mistake.opening.is_block:
        return _of_opening(mistake)
    if text == "/" and (timer := TIMER.fullmatch(mistake.line_before)) is not None:
        return f"a timer with a filter is an event: trace {timer[1]} /…/ {{ }}"
    if text == "-" and TIMER_WORD.search(mistake.line_before):
        return WORDS["tick"]
    if kind == "sign" and text in OPERATORS and "UPDATE" in mistake.expected:
        return "an expression is no statement; assign it, or call it"
    if text == "=" and "FILTER" in mistake.expected:
        return "a fetch argument is written without blanks: name=value"
    if text in ASSIGNMENTS and ASSIGNMENTS[text] not in mistake.expected:
        return _of_expected(mistake)
    if text == "=" and LONE_TARGET.fullmatch(mistake.line_before):
        return _of_assignment(mistake)
    if text == ":":
        return _of_first_word(mistake) or SIGNS[text]
    return SIGNS.get(text) or WORDS.get(text) or _of_line(mistake, text)


def _of_assignment(mistake: Mistake) -> str:
    """The hint for `name =` on a line of its own, within an expression."""
    opening = mistake.opening
    if opening is None or opening.is_block:
        return "the line before goes on here"
    opening_line = mistake.source.split("\n", opening.line)[opening.line - 1]
    return opening.unclosed if _margin(mistake.line_before) <= _margin(opening_line) else SIGNS["="]


def _margin(line: str) -> int:
    return len(line) - len(line.lstrip())


def _is_in_brackets(mistake: Mistake) -> bool:
    return mistake.opening is not None and not mistake.opening.is_block


def _of_closer(opening: Optional[Opening], wanted: str) -> Optional[str]:
    """The hint for a closing bracket, which `wanted` opens."""
    if opening is None or (opening.is_block and wanted != "{"):
        return f"no '{wanted}' is open"
    return opening.unclosed if opening.bracket != wanted else None


def _of_opening(mistake: Mistake) -> Optional[str]:
    """The hint where the innermost bracket could have been closed."""
    opening = mistake.opening
    return opening.unclosed if opening is not None and CLOSING[opening.bracket] in mistake.expected else None


def _of_line(mistake: Mistake, text: str) -> Optional[str]:
    """The hint that the line gives: its end, a keyword in it, or how it begins."""
    if mistake.is_fresh:
        return (_of_opening(mistake) if _is_in_brackets(mistake) else None) or _of_expected(mistake)
    foreign = _of_first_word(mistake)
    if foreign is not None:
        return foreign
    if text in KEYWORDS and "NAME" in mistake.expected:
        return f"'{text}' is a keyword"
    return _of_expected(mistake)


def _of_first_word(mistake: Mistake) -> Optional[str]:
    """The hint for a line that begins with a word of another language."""
    first = FIRST_WORD.match(mistake.line_before)
    if TIMER.match(mistake.line_before):
        return None
    return WORDS.get(first[1]) if first is not None and first[1] not in KEYWORDS else None


def _of_expected(mistake: Mistake) -> Optional[str]:
    """The hint where only one thing could have come."""
    expected = set(mistake.expected)
    if "EVENT" in expected:
        return "an event must follow, such as trace syscalls:* { }"
    if "FILTER" in expected or expected in ({"LBRACE", "FUNCTION"}, {"LBRACE"}):
        return "a block { } must follow"
    if expected == {"UNTIL"}:
        return "repeat { } ends with until (condition)"
    if expected == {"LPAR"} and mistake.before in ("IF", "ELSEIF", "WHILE", "UNTIL", "FOR"):
        return f"( ) must follow '{mistake.before.lower()}'"
    if mistake.before == "FUNCTION" and "NAME" in expected:
        return "a name must follow 'function'"
    return None

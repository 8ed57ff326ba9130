"""Reading a script without its grammar: where the next statement begins behind one that is in error."""

from __future__ import annotations

import re

from vm.named_tuple import NamedTuple

SKIM = re.compile(
    r"""(?P<blank>[\s\ufeff]+|\#[^\n]*)
    |(?P<string>"[^"\\\n]*(?:\\(?:\r\n|[\s\S])[^"\\\n]*)*"|'[^'\\\n]*(?:\\(?:\r\n|[\s\S])[^'\\\n]*)*')
    |(?P<number>\d\w*(?:\.\d\w*)?)
    |(?P<timer>(?:tick|profile)-\d\w*)
    |(?P<word>[^\W\d]\w*)
    |(?P<sign>\[\[|<<<|\.\.\.|\.\.=|[-+*/%<>=!~]=|\+\+|--|//|/\*|->|=>|=<|<>|<<|>>|&&|\|\||\.\.|[\s\S])""",
    re.VERBOSE,
)
"""Any text as a row of rough tokens."""

HEADERS = frozenset(("if", "elseif", "else", "while", "for", "repeat", "function", "trace", "trace_begin", "trace_end"))
"""Words after which a `{` begins a block; so do timers."""
STARTERS = HEADERS - {"function", "else", "elseif"} | {"var", "local", "return", "break", "continue"}
"""Words that can only begin a statement; so do timers."""
KEYWORDS = STARTERS | HEADERS | {"in", "until", "nil", "true", "false", "and", "or", "not"}
CLOSERS = {")": "(", "]": "[", "}": "{"}


class Broken(NamedTuple):
    """What is known of a statement in error."""

    offset: int
    """Where skimming begins: at the error."""
    brackets: tuple[str, ...]
    """Those open there, outermost first."""
    header: bool
    """A word that a block follows has been read, and its block has not begun."""
    margin: int
    """How far the line with the outermost of the brackets is indented."""
    enclosed: bool
    """A block is open around the statement."""
    fresh: bool
    """The error is the first thing on its line."""


class Skimmed(NamedTuple):
    """Where to go on."""

    offset: int
    is_block: bool
    """The block of the statement in error begins there."""
    braces: bool
    """Braces were passed over."""


def next_statement(source: str, broken: Broken) -> Skimmed:
    """Where to go on: at a statement on a line of its own, behind a `;`, at the `}` of the block around
    the statement, or at the block of the statement itself, whose head alone is in error.
    """
    open_brackets = list(broken.brackets)
    braces = "{" in open_brackets
    offset, header, fresh = broken.offset, broken.header, broken.fresh
    while True:
        token = SKIM.match(source, offset)
        if token is None:
            return Skimmed(offset, False, braces)
        text, kind = token[0], token.lastgroup
        if kind == "blank":
            fresh = fresh or "\n" in text
            offset = token.end()
            continue
        if text == "{" and header and not open_brackets:
            return Skimmed(offset, True, braces)
        if text == "}" and "{" not in open_brackets and broken.enclosed:
            return Skimmed(offset, False, braces)
        if fresh and _begins(source, token, open_brackets, broken):
            return Skimmed(offset, False, braces)
        offset, fresh = _behind(source, token), False
        if text == ";" and not open_brackets:
            return Skimmed(offset, False, braces)
        header = header or text in HEADERS or kind == "timer"
        braces = braces or text in ("{", "}")
        _follow(open_brackets, text)


def _begins(source: str, token: re.Match[str], open_brackets: list[str], broken: Broken) -> bool:
    """Whether the first thing on a line begins a statement."""
    passed = len(open_brackets) > len(broken.brackets) or tuple(open_brackets) != broken.brackets[: len(open_brackets)]
    if token.lastgroup not in ("word", "timer"):
        return token[0] in ("(", "{") and not open_brackets
    if not open_brackets:
        return True
    if "{" in open_brackets and passed:
        return False
    margin = token.start() - source.rfind("\n", 0, token.start()) - 1
    return token[0] in STARTERS or token.lastgroup == "timer" or margin <= broken.margin


def _behind(source: str, token: re.Match[str]) -> int:
    """Behind a token; behind all that an unfinished string or a raw string takes in."""
    if token[0] == "[[":
        end = source.find("]]", token.end())
        return len(source) if end < 0 else end + 2
    if token[0] in ("'", '"'):
        end = source.find("\n", token.end())
        return len(source) if end < 0 else end
    return token.end()


def _follow(open_brackets: list[str], text: str) -> None:
    """Keep account of brackets: one that closes also ends those within it."""
    if text in ("(", "[", "{"):
        open_brackets.append(text)
    elif text in CLOSERS and CLOSERS[text] in open_brackets:
        while open_brackets.pop() != CLOSERS[text]:
            continue

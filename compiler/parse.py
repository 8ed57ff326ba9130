"""The parser: a script's text becomes its syntax tree, or everything that is wrong with it is told.

After an error the parser goes back to the list of statements it was in, the text is skimmed to where the
next statement begins, and reading goes on there.
"""

from __future__ import annotations

from functools import cache
from typing import Collection, Iterator, Optional, Union

from lark import Lark, Token, UnexpectedCharacters, UnexpectedInput, UnexpectedToken
from lark.lexer import LineCounter

from compiler import literal, tables, tree
from compiler.build import Builder, Events
from compiler.hints import Explanation, Mistake, Opening, explain
from compiler.place import place, span_of
from compiler.skim import CLOSERS, HEADERS, SKIM, Broken, next_statement
from vm.diagnostic import Diagnostic, Refusal
from vm.named_tuple import NamedTuple
from vm.program import Span

MOST_ERRORS = 20
"""No more are told at once."""
MOST_FAILURES = 100
"""Nor is anything read behind so many, told or not."""
DEEPEST = 200
"""Brackets, blocks and operators within one another: what all later passes can follow without worry."""
MOST_STATES = 2000
"""What the parser's own stack may reach: more than `DEEPEST` of anything take."""
TOO_DEEP = f"nested more than {DEEPEST} deep"
TOO_DEEP_HINT = "keep a part of it in a variable or a function"

BRACKETS = {"LPAR": "(", "LSQB": "[", "LBRACE": "{", "RPAR": ")", "RSQB": "]", "RBRACE": "}"}


class Parsed(NamedTuple):
    """A script's tree, and what to warn of."""

    script: tree.Script
    warnings: tuple[Diagnostic, ...]


def parse(text: Union[str, bytes], name: str) -> Parsed:
    """Read a script; `name` is what messages call it.

    Bytes that are no UTF-8 survive in strings. Raises Refusal with every syntax error that can be told.
    """
    source = _decode(text, name)
    parser, builder = _parser()
    builder.begin(name)
    statements = _Reader(source, parser, builder).read()
    body = tree.Block(span_of(source, 0, len(source)), tuple(statements) if isinstance(statements, list) else ())
    deep = None if builder.diagnostics else too_deep(body)
    if deep is not None:
        builder.refuse(deep, TOO_DEEP, TOO_DEEP_HINT)
    if builder.diagnostics:
        told = sorted(builder.diagnostics, key=lambda diagnostic: diagnostic.span or body.span)
        raise Refusal(told[:MOST_ERRORS], source)
    return Parsed(tree.Script(body.span, name, source, body), tuple(builder.warnings))


def too_deep(body: tree.Node) -> Optional[Span]:
    """Where the tree first has more than `DEEPEST` nodes within one another; None where it has not."""
    level = [body]
    for _ in range(DEEPEST):
        level = [child for node in level for child in _children(node)]
        if not level:
            return None
    return level[0].span


def _children(node: tree.Node) -> Iterator[tree.Node]:
    pending = list(vars(node).values())
    while pending:
        value = pending.pop()
        if isinstance(value, tree.Node):
            yield value
        elif type(value) is tuple:
            pending.extend(value)


def _decode(text: Union[str, bytes], name: str) -> str:
    """The source as text; bytes that are no UTF-8 become lone surrogates, which strings turn back into bytes."""
    if isinstance(text, bytes):
        return text.decode("utf-8", "surrogateescape")
    try:
        literal.encode(text)
    except UnicodeEncodeError as error:
        span = span_of(text, error.start, error.end)
        raise Refusal([Diagnostic(name, span, "a character that stands for no bytes")], text) from None
    return text


@cache
def _parser() -> tuple[Lark, Builder]:
    """The parser and the builder it calls, made once."""
    builder = Builder()
    parser = tables.load("grammar.lark", ("script", "event_list"), builder)
    builder.read_events = lambda quoted: _read_quoted(quoted, parser, builder)
    return parser, builder


def _read_quoted(quoted: Token, parser: Lark, builder: Builder) -> Optional[Events]:
    """The events in a string, read where they stand: as if all before them in the file were blank."""
    span = place(quoted)
    text = literal.unquote(quoted)[0].decode("utf-8", "surrogateescape")
    source = "\n" * (span.line - 1) + " " * span.column + text
    events = _Reader(source, parser, builder, "event_list").read()
    return events if isinstance(events, Events) else None


class _Reader:
    """Feeds one source to the parser and gets over its errors."""

    def __init__(self, source: str, parser: Lark, builder: Builder, start: str = "script") -> None:
        self.source = source
        self.builder = builder
        self.start = start
        self.parser = parser.parse_interactive(source, start=start)
        self.state = self.parser.parser_state
        self.text = self.parser.lexer_thread.state
        self.openings: list[Opening] = []
        self.before: Optional[Token] = None
        self.header = False
        """A word that a block follows has been read, and its block has not begun."""
        self.suspect: Optional[Opening] = None
        """A `{` whose `}` does not stand under it: where a missing `}` may belong."""
        self.uncertain = False
        """Text with braces was passed over, so that those behind it may not match."""
        self.orphans: set[tuple[int, int]] = set()
        """Where blocks begin whose `if (…)` was in error."""
        self.failures = 0
        self.failed_at = -1

    def read(self) -> object:
        """What the start rule gives; None where an error was not got over."""
        lexer = self.parser.lexer_thread.lexer
        assert self.text is not None
        while True:
            try:
                for token in lexer.lex(self.text, self.state):
                    self.state.feed_token(token)
                    if not self._follow(token):
                        return None
                result: object = self.state.feed_token(Token("$END", ""), is_end=True)
                return result
            except UnexpectedInput as error:
                if not self._recover(error):
                    return None

    def _follow(self, token: Token) -> bool:
        """Keep account of brackets and headers; False where brackets are nested too deep."""
        self.before = token
        bracket = BRACKETS.get(token.type)
        if bracket is None:
            if token in HEADERS or token.type == "TIMER":
                self.header = True
        elif bracket in CLOSERS:
            opening = self.openings.pop()
            if bracket == "}":
                self.header = False
                self._suspect(opening, token)
        else:
            depth = len(self.state.state_stack)
            span = place(token)
            is_block = "statements" in self.state.parse_conf.states[self.state.position]
            self.openings.append(Opening(bracket, span.line, span.column, depth, is_block))
            self.header = self.header and bracket != "{"
            return self._is_shallow(token, len(self.openings), depth)
        return len(self.state.state_stack) < MOST_STATES or self._is_shallow(token, 0, MOST_STATES)

    def _is_shallow(self, token: Token, brackets: int, states: int) -> bool:
        if brackets <= DEEPEST and states < MOST_STATES:
            return True
        self.builder.refuse(place(token), TOO_DEEP, TOO_DEEP_HINT)
        return False

    def _suspect(self, opening: Opening, closing: Token) -> None:
        """Note the first block whose end stands further left than its beginning."""
        start = closing.start_pos or 0
        margin = self.source[self.source.rfind("\n", 0, start) + 1 : start]
        if self.suspect is None and not margin.strip() and len(margin) < self._margin(opening.line):
            self.suspect = opening

    def _margin(self, line: int) -> int:
        """How far a line is indented."""
        text = self.source.split("\n", line)[line - 1]
        return len(text) - len(text.lstrip())

    def _recover(self, error: UnexpectedInput) -> bool:
        """Tell the error and find where to go on; False where there is nothing to go on with."""
        offset, expected = self._place_of(error)
        again = offset == self.failed_at
        self.failed_at = offset
        self.failures += 1
        first = len(self.source) - len(self.source.lstrip())
        behind = self.before.end_pos or 0 if self.before else first
        before = self.before.type if self.before else ""
        explanation = explain(Mistake(self.source, offset, behind, expected, before, self._innermost(offset)))
        if self.start != "script":
            self._tell(explanation)
            return False
        if not again and not self._is_consequence(explanation):
            self._tell(explanation)
        broken = self._unwind()
        told = len(self.builder.diagnostics)
        if offset >= len(self.source) or told >= MOST_ERRORS or self.failures > MOST_FAILURES:
            return False
        self._resume(self._skim(offset, behind, broken, again))
        return True

    def _skim(self, offset: int, behind: int, removed: list[Opening], again: bool) -> int:
        """Where to go on after an error; one token further where going on at it has already failed."""
        if again and (token := SKIM.match(self.source, offset)):
            offset = token.end()
        skimmed = next_statement(
            self.source,
            Broken(
                offset,
                tuple(opening.bracket for opening in removed),
                self.header,
                self._margin(removed[0].line) if removed else 0,
                bool(self.openings),
                not again and "\n" in self.source[behind:offset],
            ),
        )
        self.uncertain = self.uncertain or skimmed.braces
        self.header = False
        if skimmed.is_block:
            self.orphans.add(span_of(self.source, skimmed.offset, skimmed.offset)[:2])
        return skimmed.offset

    def _place_of(self, error: UnexpectedInput) -> tuple[int, Collection[str]]:
        """Where it is, in characters, and what could have come."""
        if isinstance(error, UnexpectedToken):
            at_end = error.token.type == "$END"
            return len(self.source) if at_end else error.token.start_pos or 0, error.expected
        assert isinstance(error, UnexpectedCharacters)
        return error.pos_in_stream or 0, error.allowed

    def _innermost(self, offset: int) -> Optional[Opening]:
        """The open bracket that an error at an offset may be about."""
        if not self.openings:
            return None
        at_end = offset >= len(self.source) and self.openings[-1].bracket == "{"
        return self.suspect if at_end and self.suspect is not None else self.openings[-1]

    def _tell(self, explanation: Explanation) -> None:
        span = span_of(self.source, explanation.start, explanation.end)
        self.builder.refuse(span, explanation.message, explanation.hint)

    def _is_consequence(self, explanation: Explanation) -> bool:
        """Whether an error only follows from one that was told before."""
        word = self.source[explanation.start : explanation.end]
        if word == "" or (word == "}" and not self.openings):
            return self.uncertain and bool(self.builder.diagnostics)
        before = self.state.value_stack[-1] if self.state.value_stack else None
        if isinstance(before, list) and before:
            before = before[-1]
        orphan = isinstance(before, tree.Block) and before.span[:2] in self.orphans
        return orphan and word in ("else", "elseif", "until")

    def _unwind(self) -> list[Opening]:
        """Go back to the statements of the innermost open block; gives the brackets that were open in it."""
        stack, values = self.state.state_stack, self.state.value_stack
        blocks = [index for index, opening in enumerate(self.openings) if opening.is_block]
        depth = self.openings[blocks[-1]].depth if blocks else 1
        _, statements = self.state.parse_conf.states[stack[depth - 1]]["statements"]
        known = values[depth - 1] if stack[depth : depth + 1] == [statements] else []
        stack[depth:] = [statements]
        values[depth - 1 :] = [known]
        kept = blocks[-1] + 1 if blocks else 0
        broken = self.openings[kept:]
        self.openings = self.openings[:kept]
        return broken

    def _resume(self, offset: int) -> None:
        """Let the lexer go on at an offset."""
        assert self.text is not None
        self.text.line_ctr = LineCounter("\n")  # type: ignore[no-untyped-call]
        self.text.line_ctr.feed(self.source[:offset])

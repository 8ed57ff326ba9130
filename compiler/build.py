"""From tokens to the syntax tree: a method for every rule of grammar.lark, called when the rule is complete.

What the grammar lets through and the language does not is refused here.
"""

from __future__ import annotations

import re
from typing import Any, Callable, Optional, Union

from lark import Token

from compiler import hints, literal, tree
from compiler.filter import FilterError, parse_filter
from compiler.place import Placed, cover, place, within
from vm.diagnostic import Diagnostic
from vm.named_tuple import NamedTuple
from vm.program import Span

TIMER = re.compile(r"(tick|profile)-(\d+)(\w*)", re.ASCII)
UNITS = ("s", "sec", "ms", "msec", "us", "usec", "ns", "hz")
"""Units of a timer; none means seconds."""

WITH_ARGUMENTS = ("probe:", "sdt:")
"""What events begin with that fetch arguments may follow."""
SPELLINGS = {"and": "&&", "or": "||", "not": "!"}

Children = list[Any]
"""Tokens, and what the methods for the rules within gave."""


class Events(NamedTuple):
    """What stands between `trace` and its block; both lists grow while it is read."""

    texts: list[tree.EventText]
    filters: list[tree.FilterText]


class Parameters(NamedTuple):
    """What stands in the brackets after `function`."""

    names: list[tree.Name]
    variadic: bool


def dotted(target: tree.Node) -> str:
    """`a.b.c` as written; empty for anything else."""
    if isinstance(target, tree.Member):
        return f"{dotted(target.table)}.{target.name}"
    return target.name if isinstance(target, tree.Name) else ""


class Builder:
    """Makes the nodes. `diagnostics` and `warnings` gather what is wrong with the script being read."""

    def __init__(self) -> None:
        self.source_name = ""
        self.diagnostics: list[Diagnostic] = []
        self.warnings: list[Diagnostic] = []
        self.foreign_line = 0
        """The last line on which a word of another language was refused."""
        self.read_events: Callable[[Token], Optional[Events]] = lambda quoted: None
        """Reads what is within the quotes of an older `trace "EVENT"`."""

    def begin(self, source_name: str) -> None:
        """Forget the last script."""
        self.source_name = source_name
        self.diagnostics = []
        self.warnings = []
        self.foreign_line = 0

    def refuse(self, span: Span, message: str, hint: Optional[str] = None) -> None:
        """Note an error; reading goes on."""
        if span.line == self.foreign_line:
            return
        self.diagnostics.append(Diagnostic(self.source_name, span, message, hint))

    # -- statements -----------------------------------------------------------------------------

    def script(self, children: Children) -> list[tree.Statement]:
        """The whole file."""
        statements: list[tree.Statement] = children[0]
        return statements

    def event_list(self, children: Children) -> Events:
        """The text of an older `trace "EVENT /FILTER/"`."""
        events: Events = children[0]
        if children[1] is not None:
            events.filters.append(self._filter(children[1]))
        return events

    def statements(self, children: Children) -> list[tree.Statement]:
        """A statement more; one rule may give several, or none."""
        if not children:
            return []
        known: list[tree.Statement] = children[0]
        new = children[1]
        if isinstance(new, tree.Block) and known:
            self._look_for_misspelt(known[-1], new)
        known.extend(new if isinstance(new, tuple) else () if new is None else (new,))
        return known

    def _look_for_misspelt(self, before: tree.Statement, block: tree.Block) -> None:
        """`elif (c) { }` reads as a call and a block."""
        if not isinstance(before, tree.Evaluate) or before.span.end_line != block.span.line:
            return
        name = dotted(before.call.function)
        if name in hints.WORDS:
            self._refuse_foreign(before.call.function.span, name)

    def _refuse_foreign(self, span: Span, name: str) -> None:
        """A word of another language: what else is wrong with the line follows from it."""
        self.refuse(span, f"unexpected symbol near '{name}'", hints.WORDS[name])
        self.foreign_line = span.line

    def nothing(self, children: Children) -> None:
        """`;`."""

    def absent(self, children: Children) -> None:
        """A part that was left out."""

    def block(self, children: Children) -> tree.Block:
        """`{ … }`."""
        opening, statements, closing = children
        return tree.Block(cover(opening, closing), tuple(statements))

    def condition(self, children: Children) -> tree.Expression:
        """`(c)` after if, while and until."""
        inner: tree.Expression = children[1]
        return inner

    def if_statement(self, children: Children) -> tree.If:
        """`if (c) { } … else { }`."""
        word, condition, block, more = children[:4]
        branches = ((condition, block), *more)
        otherwise = children[5] if len(children) > 4 else None
        return tree.If(cover(word, otherwise or branches[-1][1]), branches, otherwise)

    def elseifs(self, children: Children) -> list[tuple[tree.Expression, tree.Block]]:
        """No elseif (yet)."""
        return []

    def more_elseifs(self, children: Children) -> list[tuple[tree.Expression, tree.Block]]:
        """`elseif (c) { }` or `else if (c) { }`."""
        known: list[tuple[tree.Expression, tree.Block]] = children[0]
        known.append((children[-2], children[-1]))
        return known

    def while_statement(self, children: Children) -> tree.While:
        """`while (c) { }`."""
        return tree.While(cover(children[0], children[2]), children[1], children[2])

    def repeat_statement(self, children: Children) -> tree.Repeat:
        """`repeat { } until (c)`."""
        word, body, _, condition = children
        return tree.Repeat(cover(word, condition), body, condition)

    def counting_for(self, children: Children) -> Optional[tree.CountingFor]:
        """`for (i = first, last, step) { }`."""
        word, _, targets, _, values, _, body = children
        if not self._are_names(targets):
            return None
        return self._counting(word, targets, values, body)

    def counting_var_for(self, children: Children) -> Optional[tree.CountingFor]:
        """`for (var i = first, last, step) { }`."""
        word, _, _, names, _, values, _, body = children
        return self._counting(word, names, values, body)

    def _counting(
        self, word: Token, names: list[tree.Name], values: list[tree.Expression], body: tree.Block
    ) -> Optional[tree.CountingFor]:
        if len(names) != 1 or not 2 <= len(values) <= 3:
            span = cover(names[0], values[-1])
            self.refuse(span, "this is no loop", "write for (i = first, last, step) or for (i = 0; i < n; i += 1)")
            return None
        step = values[2] if len(values) == 3 else None
        return tree.CountingFor(cover(word, body), names[0], values[0], values[1], step, body)

    def iterating_for(self, children: Children) -> Optional[tree.IteratingFor]:
        """`for (k, v in pairs(t)) { }`."""
        word, _, targets, _, iterated, _, body = children
        if not self._are_names(targets):
            return None
        return tree.IteratingFor(cover(word, body), tuple(targets), tuple(iterated), body)

    def iterating_var_for(self, children: Children) -> tree.IteratingFor:
        """`for (var k, v in pairs(t)) { }`."""
        word, _, _, names, _, iterated, _, body = children
        return tree.IteratingFor(cover(word, body), tuple(names), tuple(iterated), body)

    def _are_names(self, targets: list[tree.Node]) -> bool:
        """A loop's variables are names of its own."""
        for target in targets:
            if not isinstance(target, tree.Name):
                self.refuse(target.span, "a loop counts in a name, not in an expression")
                return False
        return True

    def classic_for(self, children: Children) -> tree.ClassicFor:
        """`for (i = 0; i < 10; i += 1) { }`."""
        word, _, start, _, test, _, update, _, body = children
        return tree.ClassicFor(cover(word, body), start, test, update, body)

    def break_statement(self, children: Children) -> tree.Break:
        """`break`."""
        return tree.Break(place(children[0]))

    def continue_statement(self, children: Children) -> tree.Continue:
        """`continue`."""
        return tree.Continue(place(children[0]))

    def return_statement(self, children: Children) -> tree.Return:
        """`return a, b`."""
        values = tuple(children[1]) if len(children) > 1 else ()
        return tree.Return(cover(children[0], values[-1] if values else children[0]), values)

    def function_statement(self, children: Children) -> tree.FunctionStatement:
        """`function f(a) { }`."""
        word, target, parameters, body = children
        function = self._function(word, dotted(target), parameters, body)
        return tree.FunctionStatement(function.span, target, function)

    def local_function(self, children: Children) -> tuple[tree.Statement, ...]:
        """`local function f(a) { }`: f can call itself, so its name is declared before its value is made."""
        word, _, token, parameters, body = children
        target = tree.Name(place(token), str(token))
        function = self._function(word, target.name, parameters, body)
        return tree.Local(target.span, (target,), ()), tree.FunctionStatement(function.span, target, function)

    def assign(self, children: Children) -> tree.Assign:
        """`a, t[k] = 1, 2`."""
        targets, _, values = children
        for target in targets:
            self._check_target(target)
        return tree.Assign(cover(targets[0], values[-1]), tuple(targets), tuple(values))

    def update(self, children: Children) -> tree.Update:
        """`a += 1`."""
        target, operator, value = children
        self._check_target(target)
        return tree.Update(cover(target, value), operator[:-1], target, value)

    def sample(self, children: Children) -> tree.Sample:
        """`s[k] <<< v`."""
        target, _, value = children
        self._check_target(target)
        return tree.Sample(cover(target, value), target, value)

    def _check_target(self, target: tree.Node) -> None:
        if not isinstance(target, (tree.Name, tree.Index, tree.Member)):
            what = "the result of a call" if isinstance(target, tree.Call) else "an expression in brackets"
            self.refuse(target.span, f"{what} cannot be assigned to")

    def evaluate(self, children: Children) -> Optional[tree.Evaluate]:
        """A call."""
        call = children[0]
        if isinstance(call, tree.Call):
            return tree.Evaluate(call.span, call)
        if isinstance(call, tree.Name) and call.name in hints.WORDS:
            self._refuse_foreign(call.span, call.name)
        elif isinstance(call, tree.Name):
            self.refuse(call.span, f"unexpected symbol near '{call.name}'", f"a call is written {call.name}()")
        else:
            self.refuse(call.span, "an expression is no statement", "assign it, or call it")
        return None

    def local(self, children: Children) -> tree.Local:
        """`var a, b = 1, 2`."""
        names = children[1]
        values = tuple(children[3]) if len(children) > 2 else ()
        return tree.Local(cover(children[0], values[-1] if values else names[-1]), tuple(names), values)

    def targets(self, children: Children) -> list[Any]:
        """`a, t[k]` before `=` or `in`."""
        return self._list(children)

    def names(self, children: Children) -> list[tree.Name]:
        """`a, b` where only names can stand."""
        known: list[tree.Name] = children[0] if len(children) > 1 else []
        known.append(tree.Name(place(children[-1]), str(children[-1])))
        return known

    def path(self, children: Children) -> Union[tree.Name, tree.Member]:
        """`t.f` after `function`."""
        if len(children) == 1:
            return tree.Name(place(children[0]), str(children[0]))
        return self.member(children)

    # -- probes ---------------------------------------------------------------------------------

    def events(self, children: Children) -> Events:
        """`EVENT, EVENT`."""
        new = children[-1]
        if isinstance(new, Events):
            texts, filters = new
        else:
            text = " ".join(str(token) for token in new)
            texts, filters = [tree.EventText(cover(new[0], new[-1]), text)], []
            self._check_timer(new[0])
            if len(new) > 1 and not text.startswith(WITH_ARGUMENTS):
                message = "only functions and markers (probe:, sdt:) have fetch arguments"
                self.refuse(place(new[1]), message, "a comma separates events")
        if len(children) == 1:
            return Events(texts, filters)
        children[0].texts.extend(texts)
        children[0].filters.extend(filters)
        known: Events = children[0]
        return known

    def event(self, children: Children) -> list[Token]:
        """An event and its fetch arguments."""
        return [*children[0], children[1]] if len(children) > 1 else children

    def quoted_event(self, children: Children) -> Events:
        """`"EVENT"`, as older scripts write it."""
        return self.read_events(children[0]) or Events([tree.EventText(place(children[0]), "")], [])

    def handler(self, children: Children) -> tuple[Optional[Token], Parameters, tree.Block]:
        """`{ … }`, or `function (e) { … }` in older scripts."""
        if len(children) == 1:
            return None, Parameters([], False), children[0]
        word, parameters, body = children
        if len(parameters.names) > 1 or parameters.variadic:
            self.refuse(parameters.names[-1].span if parameters.names else place(word), "a handler has one parameter")
        return word, parameters, body

    def trace(self, children: Children) -> tree.Trace:
        """`trace EVENT /FILTER/ { }`."""
        word, events, written, handler = children
        filters = events.filters + ([] if written is None else [self._filter(written)])
        if len(filters) > 1:
            self.refuse(filters[1].span, "a second filter", "join the two with &&")
        return self._trace(word, events.texts, filters[0] if filters else None, handler)

    def special_trace(self, children: Children) -> tree.Trace:
        """`trace_begin { }`, `trace_end { }`, `tick-1s { }`."""
        word, handler = children
        self._check_timer(word)
        return self._trace(word, [tree.EventText(place(word), str(word))], None, handler)

    def _trace(
        self,
        word: Token,
        texts: list[tree.EventText],
        filter_text: Optional[tree.FilterText],
        handler: tuple[Optional[Token], Parameters, tree.Block],
    ) -> tree.Trace:
        function_word, parameters, body = handler
        name = ", ".join(event.text for event in texts)
        function = self._function(function_word or body, name, parameters, body)
        return tree.Trace(cover(word, body), tuple(texts), filter_text, function)

    def _filter(self, token: Token) -> tree.FilterText:
        text, span = str(token[1:-1]), within(token, 1, len(token) - 1)
        try:
            parse_filter(text, span)
        except FilterError as error:
            self.refuse(error.span, error.message, error.hint)
        return tree.FilterText(span, text)

    def _check_timer(self, token: Token) -> None:
        timer = TIMER.fullmatch(token)
        if timer is None:
            return
        if timer[3] and timer[3] not in UNITS:
            place_of_unit = within(token, timer.start(3), timer.end(3))
            self.refuse(place_of_unit, f"unknown unit '{timer[3]}' of a timer", f"units are {', '.join(UNITS)}")
        elif not timer[2].strip("0"):
            self.refuse(place(token), "the period of a timer is at least 1")

    # -- expressions ----------------------------------------------------------------------------

    def expressions(self, children: Children) -> list[Any]:
        """`a, b`."""
        return self._list(children)

    def _list(self, children: Children) -> list[Any]:
        if len(children) == 1:
            return children
        known: list[Any] = children[0]
        known.append(children[-1])
        return known

    def binary(self, children: Children) -> tree.Binary:
        """`a + b`."""
        left, operator, right = children
        return tree.Binary(cover(left, right), SPELLINGS.get(operator, str(operator)), left, right)

    def unary(self, children: Children) -> tree.Unary:
        """`-a`."""
        operator, operand = children
        return tree.Unary(cover(operator, operand), SPELLINGS.get(operator, str(operator)), operand)

    def constant(self, children: Children) -> tree.Literal:
        """nil, true and false."""
        token = children[0]
        return tree.Literal(place(token), {"nil": None, "true": True, "false": False}[token])

    def integer(self, children: Children) -> tree.Literal:
        """`42`, `0x2a`."""
        token = children[0]
        value, fits = literal.integer(token)
        if not fits:
            message = f"the integer is beyond 64 bits and is taken as {value}"
            self.warnings.append(Diagnostic(self.source_name, place(token), message, warning=True))
        return tree.Literal(place(token), value)

    def string(self, children: Children) -> tree.Literal:
        """`"text"`."""
        token = children[0]
        value, bad = literal.unquote(token)
        for escape in bad:
            message = f"unknown escape '{hints.show(escape.text)}' in a string"
            self.refuse(within(token, escape.start, escape.end), message, r"a backslash itself is written \\")
        return tree.Literal(place(token), value)

    def raw(self, children: Children) -> tree.Literal:
        """`[[text]]`."""
        return tree.Literal(place(children[0]), literal.raw(children[0]))

    def symbol(self, children: Children) -> tree.Symbol:
        """`` `vfs_read` ``."""
        return tree.Symbol(place(children[0]), str(children[0][1:-1]))

    def vararg(self, children: Children) -> tree.Vararg:
        """`...`."""
        return tree.Vararg(place(children[0]))

    def name(self, children: Children) -> tree.Name:
        """A variable, a builtin or a value of the event."""
        return tree.Name(place(children[0]), str(children[0]))

    def parenthesized(self, children: Children) -> tree.Parenthesized:
        """`(a)`."""
        opening, inner, closing = children
        return tree.Parenthesized(cover(opening, closing), inner)

    def member(self, children: Children) -> tree.Member:
        """`t.name`."""
        table, _, name = children
        return tree.Member(cover(table, name), table, str(name), place(name))

    def index(self, children: Children) -> tree.Index:
        """`t[a, b]`."""
        table, _, keys, closing = children
        return tree.Index(cover(table, closing), table, tuple(keys))

    def call(self, children: Children) -> tree.Call:
        """`f(a, b)`."""
        arguments = tuple(children[2]) if len(children) > 3 else ()
        return tree.Call(cover(children[0], children[-1]), children[0], arguments)

    def function(self, children: Children) -> tree.FunctionExpression:
        """`function (a) { }`."""
        word, parameters, body = children
        return self._function(word, "", parameters, body)

    def _function(self, first: Placed, name: str, parameters: Parameters, body: tree.Block) -> tree.FunctionExpression:
        names = tuple(parameters.names)
        return tree.FunctionExpression(cover(first, body), name, names, parameters.variadic, body)

    def no_parameters(self, children: Children) -> Parameters:
        """`()`."""
        return Parameters([], False)

    def only_varargs(self, children: Children) -> Parameters:
        """`(...)`."""
        return Parameters([], True)

    def parameters(self, children: Children) -> Parameters:
        """`(a, b)`, `(a, b, ...)`."""
        return Parameters(children[1], len(children) > 3)

    def table(self, children: Children) -> tree.TableExpression:
        """`{1, 2, [k] = v}`."""
        entries = tuple(children[1]) if len(children) > 2 else ()
        return tree.TableExpression(cover(children[0], children[-1]), entries)

    def entries(self, children: Children) -> list[Any]:
        """An entry more."""
        return self._list(children)

    def entry(self, children: Children) -> tree.Entry:
        """A positional entry."""
        return tree.Entry(children[0].span, None, children[0])

    def named_entry(self, children: Children) -> tree.Entry:
        """`name = v`."""
        name, _, value = children
        key = tree.Literal(place(name), name.encode())
        return tree.Entry(cover(name, value), key, value)

    def keyed_entry(self, children: Children) -> tree.Entry:
        """`[k] = v`."""
        opening, key, _, _, value = children
        return tree.Entry(cover(opening, value), key, value)

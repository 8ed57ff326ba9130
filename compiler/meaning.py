"""What a name of a script means: a variable, a builtin or a value of the event.

Rules beyond those of the language page:

- A name of the event or of a builtin is that only while no variable in scope has the name and no global
  of the name is assigned anywhere in the script.
- A global that the script stores entries in (`s[k] += 1`, `s.n = 1`, `s[k] <<< v`) and never assigns is a
  table from the start.
- A name that is read and never assigned is nil. When it is called or looked into that cannot work: an
  error. When it is only read, it is an error where a name much like it exists, else a warning.
"""

from __future__ import annotations

from typing import Collection, Optional, Sequence, Union

from compiler import tree
from compiler.skim import KEYWORDS
from compiler.spell import suggest
from vm.diagnostic import Diagnostic
from vm.event import OLDER_NAMES, VARIABLES
from vm.named_tuple import NamedTuple
from vm.program import Span

EVENT_NAMES = frozenset(variable.name for variable in VARIABLES)
PATHS = frozenset(("args", "curtask"))
"""Names of the event that carry a path of members."""
RESULT, RESULT_FIELD = "retval", "args.__probe_retval"
"""What a function returns may be a pointer to a structure; members behind it are those behind the field it is."""
PRESET = frozenset(("arg",))
"""Globals that are set before the main chunk runs: the script's arguments."""
FOREIGN = {
    "comm": "the name of the running task is `execname`",
    "tgid": "the process is `pid`, the thread `tid`",
    "func": "the name of the probe is `probename`",
    "probe": "the name of the probe is `probename`",
    "timestamp": "the time of the event is `nsecs`",
    "kstack": "write stack()",
    "str": "write user_string(p) or kernel_string(p)",
    "copyinstr": "write user_string(p)",
    "kstr": "write kernel_string(p)",
    "clear": "write delete(t)",
    "zero": "write delete(t)",
    "quantize": "write t[k] <<< v, and hist(t)",
    "lquantize": "write t[k] <<< v, and lhist(t, low, high, step)",
}
"""By a name that other tracers give to something, what to write."""
SHORT = 2
"""A name of so few letters is like too many others to be taken for a slip."""


SLIP = 0.8
"""How alike (0 to 1) a name that is only read must be to one that is known, and begin like it, to be refused."""


class Variable:
    """A local variable or parameter; `captured` when a function within shares it: then it lives in a box."""

    __slots__ = ("captured", "function", "name", "register", "span")

    def __init__(self, name: str, span: Span, function: object) -> None:
        self.name = name
        self.span = span
        self.function = function
        """The scope of the function it belongs to."""
        self.captured = False
        self.register = -1
        """Where it is, once the generator has come to its declaration."""


class Capture(NamedTuple):
    """An upvalue: a variable of the function around (`outer` is -1), or that one's upvalue `outer`."""

    variable: Variable
    outer: int


class Local(NamedTuple):
    """A variable of the function the name stands in."""

    variable: Variable


class Upvalue(NamedTuple):
    """A variable of a function further out: its place among the captures."""

    slot: int


class Global(NamedTuple):
    """A global."""

    name: str


class EventValue(NamedTuple):
    """A value of the event: `pid`, `args.a.b`."""

    path: str


class Builtin(NamedTuple):
    """A builtin: `print`, `string.sub`."""

    name: str


Meaning = Union[Local, Upvalue, Global, EventValue, Builtin]


class Use(NamedTuple):
    """A name that is no variable in scope, and what is done with it."""

    chain: tuple[tree.Expression, ...]
    """The name, then the members behind it: `string`, `string.sub`."""
    call: Optional[tree.Call] = None
    """The call of the whole chain."""
    looked_into: bool = False
    """The whole chain is indexed."""
    stored_into: bool = False
    """An entry of it is assigned."""
    visible: tuple[str, ...] = ()
    """The variables in scope, where the name is none the language knows."""

    @property
    def name(self) -> str:
        """The name the chain begins with."""
        return self.dotted(1)

    @property
    def span(self) -> Span:
        """The place of that name."""
        return self.chain[0].span

    def dotted(self, count: int) -> str:
        """The first `count` names of the chain with dots between."""
        return ".".join(part.name for part in self.chain[:count] if isinstance(part, (tree.Name, tree.Member)))


class Scopes:
    """What the names of a tree mean, by `id` of the node: the tree must stay alive as long."""

    def __init__(self) -> None:
        self.meanings: dict[int, Meaning] = {}
        """Of names, and of whole expressions such as `args.filename`, `string.sub` and `pid()`."""
        self.declared: dict[int, Variable] = {}
        """The variable that a Name declares."""
        self.captures: dict[int, list[Capture]] = {}
        """Of every FunctionExpression."""
        self.kept: dict[int, list[Variable]] = {}
        """Of a Repeat with a `continue`: the variables of its body, which its condition can see."""
        self.tables: list[str] = []
        """Globals that are a table from the start."""
        self.diagnostics: list[Diagnostic] = []


class Names:
    """Decides what the names mean that are no variable in scope, when all of the script is known."""

    def __init__(
        self,
        scopes: Scopes,
        source_name: str,
        builtins: Collection[str],
        assigned: Collection[str],
        uses: Sequence[Use],
    ) -> None:
        self.scopes = scopes
        self.source_name = source_name
        self.builtins = builtins
        self.libraries = {name.split(".")[0] for name in builtins if "." in name}
        extended = {use.name for use in uses if use.stored_into and use.name in self.libraries}
        self.globals = {*assigned, *PRESET, *extended}
        self.tables: dict[str, Use] = {}
        """Globals that have entries stored in them and that nothing assigns."""
        for use in uses:
            if use.stored_into and not self._is_known(use.name):
                self.tables.setdefault(use.name, use)
        self.told: set[str] = set()

    def _is_known(self, name: str) -> bool:
        real = OLDER_NAMES.get(name, name)
        return (
            name in self.globals
            or real in EVENT_NAMES
            or real in PATHS
            or name in self.builtins
            or name in self.libraries
        )

    def decide(self, uses: Sequence[Use]) -> None:
        """Enter the meaning of every use, or say what is wrong with it."""
        for use in self.tables.values():
            self._check_new_table(use)
        self.scopes.tables.extend(self.tables)
        for use in uses:
            name = OLDER_NAMES.get(use.name, use.name)
            if use.name in self.globals or use.name in self.tables:
                self._mean(use, 1, Global(use.name))
            elif name in EVENT_NAMES or name in PATHS:
                self._event_value(use, name)
            elif use.name in self.builtins or use.name in self.libraries:
                self._builtin(use)
            else:
                self._mean(use, 1, Global(use.name))
                self._unknown(use)

    def _mean(self, use: Use, count: int, meaning: Meaning) -> None:
        self.scopes.meanings[id(use.chain[count - 1])] = meaning

    def _tell(self, span: Span, message: str, hint: Optional[str] = None, warning: bool = False) -> None:
        self.scopes.diagnostics.append(Diagnostic(self.source_name, span, message, hint, warning))

    def _event_value(self, use: Use, name: str) -> None:
        if use.stored_into:
            self._tell(use.span, f"`{use.name}` is a value of the event: it cannot be changed")
            return
        if name == "args" and len(use.chain) == 1:
            self._tell(
                use.span, "`args` stands only before the name of a field", "write `args.NAME`, or `arg0` to `arg9`"
            )
            return
        count = len(use.chain) if name in PATHS or name == RESULT else 1
        root = RESULT_FIELD if name == RESULT and count > 1 else name
        value = EventValue(".".join((root, *use.dotted(count).split(".")[1:])))
        self._mean(use, count, value)
        if use.call is not None and count == len(use.chain):
            if use.call.arguments or name == "args" or count > 1:
                self._tell(use.chain[-1].span, f"`{use.dotted(count)}` is a value of the event, not a function")
            else:
                self.scopes.meanings[id(use.call)] = value

    def _builtin(self, use: Use) -> None:
        for count in range(len(use.chain), 0, -1):
            if use.dotted(count) in self.builtins:
                self._mean(use, count, Builtin(use.dotted(count)))
                if use.stored_into:
                    self._tell(use.span, f"`{use.name}` is a builtin: it has no entries")
                return
        self._mean(use, 1, Global(use.name))
        if len(use.chain) > 1:
            member = use.dotted(2)
            near = suggest(member, (name for name in self.builtins if name.startswith(f"{use.name}.")))
            hint = f"did you mean `{near}`?" if near is not None else None
            name = use.chain[1]
            span = name.name_span if isinstance(name, tree.Member) else name.span
            self._tell(span, f"`{use.name}` has no `{member.split('.')[1]}`", hint)

    def _unknown(self, use: Use) -> None:
        if use.name in self.told:
            return
        self.told.add(use.name)
        near = self._near(use)
        hint = f"did you mean `{near}`?" if near is not None else self._elsewhere(use.name)
        hint = FOREIGN.get(use.name, hint)
        if use.call is not None and len(use.chain) == 1:
            self._tell(use.span, f"unknown function `{use.name}`", hint)
        elif use.looked_into or len(use.chain) > 1 or (near is not None and _is_slip(use.name, near)):
            self._tell(use.span, f"unknown name `{use.name}`", hint)
        else:
            self._tell(use.span, f"`{use.name}` is never assigned, so it is always nil", hint, warning=True)

    def _near(self, use: Use) -> Optional[str]:
        """The name that may have been meant."""
        if len(use.name) <= SHORT:
            return None
        if len(use.chain) > 1:
            library = suggest(use.name, self.libraries)
            member = f"{library}.{use.dotted(2).split('.')[1]}"
            if member in self.builtins:
                return member
        plain = {name for name in self.builtins if "." not in name}
        words = {*KEYWORDS, *plain, *EVENT_NAMES, *PATHS, *self.globals, *self.tables, *use.visible}
        looked_into = use.looked_into or len(use.chain) > 1
        return suggest(use.name, words | self.libraries if looked_into else words)

    def _elsewhere(self, name: str) -> Optional[str]:
        """Where a variable of the name is, though not in scope."""
        lines = [variable.span.line for variable in self.scopes.declared.values() if variable.name == name]
        return f"the variable of line {lines[0]} cannot be seen here" if lines else None

    def _check_new_table(self, use: Use) -> None:
        """Warn of a table that is only there because an assigned name was misspelt."""
        near = suggest(use.name, {*self.globals, *use.visible}) if len(use.name) > SHORT else None
        if near is not None:
            self._tell(
                use.span, f"`{use.name}` is never assigned: a new table", f"did you mean `{near}`?", warning=True
            )


def _is_slip(name: str, near: str) -> bool:
    """Whether a name is so much like another that it can only be that one misspelt."""
    from difflib import SequenceMatcher  # only when something is already wrong

    name, near = name.lower(), near.lower()
    return name[0] == near[0] and SequenceMatcher(None, name, near, False).ratio() >= SLIP

"""What handlers ask of their events, found in the bytecode before anything is attached.

Each handler is walked with symbols in place of values: constants, functions, builtins, and
expressions over the event's own values. So for `user_string(arg1 + 8)` it is known which memory to
read when the event fires. Calls of the script's functions are followed with the symbols of their
arguments; a function that gets where its calls cannot be seen (into a table, to a builtin) is walked
as if every handler called it.

What flows through a variable that outlives the event is no longer this event's: a read at such an
address is refused, because the memory can only be read when the event fires.
"""

from __future__ import annotations

from typing import Dict, Iterable, List, Mapping, Optional, Sequence, Set, Tuple

from ktap import demand
from ktap.demand import Demand
from ktap.walk import MOST_STRING_BYTES, Facts, Types, Walk
from vm.diagnostic import Diagnostic
from vm.named_tuple import NamedTuple
from vm.program import Program, Span


class Needs(NamedTuple):
    """What each function asks for when it is a handler, and what is wrong with reads in them."""

    of_function: Mapping[int, Demand]
    places: Mapping[str, Span]
    """Where each event variable is read first."""
    diagnostics: Tuple[Diagnostic, ...]


def needs(
    program: Program,
    handlers: Sequence[Tuple[int, bool]],
    string_bytes: int = MOST_STRING_BYTES,
    types: Optional[Types] = None,
) -> Needs:
    """The demands of handlers: each is a function's index and whether it is given the event (`function (e)`).

    `string_bytes` is the most that is read of a string.
    """
    facts = Facts(program)
    found: Dict[int, Demand] = {}
    places: Dict[str, Span] = {}
    problems: List[Diagnostic] = []
    for function, takes_event in handlers:
        walk = Walk(program, facts, string_bytes, types=types)
        walk.call(function, ())
        for loose in sorted(facts.loose):
            walk.call(loose, ())
        extra = frozenset({"argstr"} if takes_event else ())
        wanted = Demand(frozenset(walk.variables) | extra, frozenset(walk.reads), walk.kernel, walk.user)
        found[function] = wanted._replace(states=frozenset(walk.states))
        for name, span in (*walk.variables.items(), *((f"curtask.{name}", span) for name, span in walk.states.items())):
            places.setdefault(name, span)
        problems.extend(problem for problem in walk.problems if problem not in problems)
    return Needs(found, places, tuple(problems))


def symbols_of(demands: Iterable[Demand]) -> Set[str]:
    """The kernel symbols that addresses in reads name."""
    waiting: List[demand.Expression] = [read for wanted in demands for read in wanted.reads]
    found: Set[str] = set()
    while waiting:
        expression = waiting.pop()
        if isinstance(expression, demand.Symbol):
            found.add(expression.name)
        elif isinstance(expression, demand.Binary):
            waiting += [expression.left, expression.right]
        elif isinstance(expression, demand.Read):
            waiting.append(expression.address)
            if expression.length is not None:
                waiting.append(expression.length)
    return found

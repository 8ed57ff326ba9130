"""Which function of a program returns: the helper for it tells of kernel functions alone before Linux 6.6.

The kernel has it in the running task: in the return that is being served, the last of those that are expected
(kernel/events/uprobes.c, struct return_instance).
"""

from __future__ import annotations

from typing import Callable, Optional

from ktap.btf import Btf
from ktap.capture import USER_RETURN
from ktap.demand import Expression, Value
from ktap.fetched import FUNCTION
from ktap.members import TASK, Unreachable, follow
from ktap.plan import Wanted
from vm.c_types import Scope, Structure

PATH = ("utask", "return_instances", "func")


def with_function(wanted: Wanted, types: Callable[[], Optional[Btf]]) -> Wanted:
    """The same with its function read from the kernel where the helper does not tell it and types say where it is."""
    recipe = wanted.recipe
    if wanted.context != USER_RETURN or recipe is None or all(part.what != FUNCTION for part in recipe.parts):
        return wanted
    found = _expected(types())
    if found is None:
        return wanted
    parts = tuple(part._replace(what=found) if part.what == FUNCTION else part for part in recipe.parts)
    return wanted._replace(recipe=recipe._replace(parts=parts))


def _expected(types: Optional[Btf]) -> Optional[Expression]:
    """What tells it, None for the helper; which asks `is_uprobe` where it knows of programs."""
    if types is None:
        return None
    running = types.find("struct bpf_trace_run_ctx")
    if not isinstance(running, Structure) or any(member.name == "is_uprobe" for member in running.members):
        return None
    try:
        return follow(Scope(types), "curtask", Value("curtask"), TASK, PATH).read
    except Unreachable:
        return None

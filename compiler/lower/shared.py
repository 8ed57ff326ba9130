"""What all handlers of a plan are emitted with."""

from __future__ import annotations

from typing import Mapping, Tuple

from compiler.lower.flat import Variable
from compiler.lower.layouts import StatsLayout
from compiler.lower.partition import Plan
from vm.named_tuple import NamedTuple


class Limits(NamedTuple):
    """What bounds a handler."""

    loop_rounds: int
    table_entries: int
    kept_entries: int = 0
    """How many removed entries each processor may leave in a table."""


class Shared(NamedTuple):
    """What all handlers of a plan are emitted with."""

    plan: Plan
    table_maps: Mapping[int, str]
    """Name of the map by id of the table."""
    swapped: frozenset[str]
    """Maps that are reached through an array of maps."""
    variable_maps: Mapping[Variable, Tuple[str, int]]
    """Map and index of every variable that is added to."""
    contended: frozenset[str]
    """Maps that more than one program updates."""
    stats: StatsLayout
    limits: Limits

"""What the command line and the machine give a live source, whichever way its events come."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Callable, Optional, Sequence, Tuple

from ktap import kernel
from ktap.captured import TextOf
from ktap.demand import Demand
from ktap.event_format import EventFormat
from ktap.walk import Types
from vm.diagnostic import Diagnostic, Refusal
from vm.named_tuple import NamedTuple

if TYPE_CHECKING:
    from ktap.address_spaces import AddressSpaces

BUFFER_BYTES = 32 << 20
"""Of the ring, or of all processors' perf buffers together: a burst of 800,000 small events."""
BUFFER_SHARE = 128
"""No more of the machine's memory than this part."""
LEAST_BUFFER_BYTES = 1 << 18
UNMADE = "the kernel could not make a table's entry at that moment"
"""A loss: of what would have been the first of a new key; it is made by one of the next."""
UNNAMED = "no room for what processes map, so some addresses have no names"
"""A loss: of no event, but of what the kernel told about processes."""

MISSED = "fired while the kernel was in a probe already"
MISSED_RETURNS = "more calls were running than the kernel keeps, or it was in a probe already"
"""What is said of calls that the kernel's own probes did not see."""

Say = Callable[[str], None]
"""Tells the user something that is no error."""
FormatText = Callable[[EventFormat], Optional[TextOf]]
"""Makes the function that shows a raw record as text."""


class Options(NamedTuple):
    """What the command line says about a live source."""

    buffer: str = "auto"
    """`perf`, `ring`, or `auto`: the ring where the kernel has one."""
    buffer_bytes: Optional[int] = None
    """Of the ring, or of each processor's perf buffer."""
    pids: Tuple[int, ...] = ()
    """Trace only these processes and their children."""
    cpu: Optional[int] = None
    event_string_bytes: int = 4096
    also: Demand = Demand()
    """What to capture beyond what handlers read, for a recording."""
    attaching: bool = True
    """Programs are attached; if not, they are loaded only, for what there is to say about them."""


class Helpers(NamedTuple):
    """What values of events are made with."""

    format_text: FormatText
    table: Callable[[Sequence[object]], object]
    """Makes a table of a field that is an array of integers."""
    symbol: Callable[[str], Optional[int]]
    """The address of a kernel symbol."""
    symbol_of: Callable[[int], str]
    """The symbol of an address in the kernel."""
    types: Types
    """The C types the script knows, its own and the kernel's."""
    spaces: Optional[AddressSpaces] = None
    """What the memory of processes is known by, where the script names their code."""


def missed_text(label: str) -> str:
    """What is said of calls that the kernel's own probes did not see, of an event or several."""
    return MISSED_RETURNS if label.partition(" ")[0].endswith("%return") else MISSED


def buffer_bytes(buffers: int) -> int:
    """The size of each of several buffers where the user has not said one."""
    memory = os.sysconf("SC_PAGESIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(LEAST_BUFFER_BYTES, min(BUFFER_BYTES, memory // BUFFER_SHARE) // buffers)


def power_of_two(size_bytes: int) -> int:
    """The size of a buffer: the next power of two that is at least a page."""
    size = os.sysconf("SC_PAGESIZE")
    while size < size_bytes:
        size *= 2
    return size


def refusal(error: OSError) -> Refusal:
    """What a user is told when the kernel refuses to trace: status 3."""
    what = f"{error.filename}: " if error.filename else ""
    message = f"cannot trace: {what}{error.strerror or error}"
    return Refusal([Diagnostic("ktap", None, message, kernel.remedy(error))], status=3)

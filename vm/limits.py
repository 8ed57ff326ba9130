"""The limits a script runs under, and the options that set them: one row a limit."""

from __future__ import annotations

from typing import NamedTuple

MAX_CALL_DEPTH = 20_000
"""Above this the C stack (8 MiB as a rule) may not carry the calls: what sort_pairs calls back takes most of it."""

CALLS_A_ROUND = 20
"""How many calls one run may make for every loop round it may make: recursion without loops ends too."""


class Limits(NamedTuple):
    """What one script may use. Sizes are in bytes."""

    handler_rounds: int = 100_000
    """Loop rounds in one run of a handler."""
    main_rounds: int = 50_000_000
    """Loop rounds in the main chunk, and in one run of a tick, trace_begin or trace_end."""
    call_depth: int = 1_000
    table_entries: int = 16_384
    event_string_bytes: int = 4_096
    """The longest string read from an event."""
    string_bytes: int = 1 << 20
    """The longest string a script may build."""
    memory_bytes: int = 256 << 20
    """Everything the script holds: strings, tables, closures, aggregations."""
    output_bytes: int = 1 << 30


class Flag(NamedTuple):
    """One command-line option: the field of `Limits` it sets and what it takes."""

    name: str
    field: str
    minimum: int
    maximum: int
    help: str


FLAGS: tuple[Flag, ...] = (
    Flag("--max-rounds", "handler_rounds", 1, 1 << 40, "loop rounds in one run of a handler"),
    Flag("--max-main-rounds", "main_rounds", 1, 1 << 40, "loop rounds in the main chunk, a tick and trace_end"),
    Flag("--max-depth", "call_depth", 1, MAX_CALL_DEPTH, "calls nested in one another"),
    Flag("--max-entries", "table_entries", 1, 1 << 30, "entries of one table"),
    Flag("--max-event-string", "event_string_bytes", 16, 1 << 15, "bytes of a string read from an event"),
    Flag("--max-string", "string_bytes", 64, 1 << 30, "bytes of a string the script builds"),
    Flag("--max-memory", "memory_bytes", 1 << 20, 1 << 40, "bytes the script holds in all"),
    Flag("--max-output", "output_bytes", 1, 1 << 50, "bytes the script prints"),
)

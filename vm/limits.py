"""The limits a script runs under, and the options that set them: one row a limit."""

from __future__ import annotations

from vm.named_tuple import NamedTuple

MAX_CALL_DEPTH = 4_000
"""What a C stack of 8 MiB carries on every Python: up to 1.6 KiB a call (3.9, a tail call within each)."""

MAX_CALLBACKS = 200
"""How deep builtins and loops may call functions of the script within each other: a sort takes 4 KiB of C stack."""

MIN_CALLS = 2_000_000
"""One run may make as many calls as loop rounds, but always this many: recursion that branches ends too."""


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
    probes: int = 10_000
    """Functions that one event may mean."""


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
    Flag("--max-probes", "probes", 1, 1 << 20, "functions that one event may mean"),
)

"""Tables for people to read: the only place that imports rich."""

from __future__ import annotations

import sys
from typing import Sequence

STYLES = {"yes": "green", "no": "bold red", "(no)": "yellow"}
"""Cells that are coloured on a terminal; rich leaves the colours out for NO_COLOR."""


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as aligned text; wrapped and coloured on a terminal only."""
    terminal = sys.stdout is not None and sys.stdout.isatty()
    try:
        from io import StringIO

        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return plain(rows)
    grid = Table.grid(padding=(0, 2))
    for row in rows:
        grid.add_row(*(Text(cell, STYLES.get(cell, "")) for cell in row))
    page = StringIO()
    width = None if terminal else 10_000
    Console(file=page, force_terminal=terminal, width=width, highlight=False).print(grid)
    return "".join(line.rstrip() + "\n" for line in page.getvalue().splitlines())


def plain(rows: Sequence[Sequence[str]]) -> str:
    """The same without rich."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)
    return "".join(line + "\n" for line in lines)

"""Diagnostics: what a user reads when something is wrong, with its place and a remedy."""

from __future__ import annotations

from typing import Optional, Sequence

from vm.named_tuple import NamedTuple
from vm.program import Span

WIDTH = 200
"""Columns of a source line that are shown; of a longer one, those around the place."""


class Diagnostic(NamedTuple):
    """One message. `span` is None where there is no place in a script (a system failure)."""

    source_name: str
    span: Optional[Span]
    message: str
    hint: Optional[str] = None
    warning: bool = False

    def render(self, source: Optional[str]) -> str:
        """`file.kp:3:9: message; hint`, then the source line and a caret where both are known.

        Tabs before the caret are kept as tabs, so that the caret stands under its place. Of a line longer
        than `WIDTH` the columns around the place are shown.
        """
        text = self.message if self.hint is None else f"{self.message}; {self.hint}"
        if self.warning:
            text = f"warning: {text}"
        if self.span is None:
            return f"{self.source_name}: {text}"
        head = f"{self.source_name}:{self.span.line}:{self.span.column}: {printable(text)}"
        lines = source.split("\n") if source is not None else []
        if not 0 < self.span.line <= len(lines):
            return head
        line = printable(lines[self.span.line - 1])
        column = min(self.span.column, len(line) + 1)
        last = min(self.span.end_column, len(line) + 1) if self.span.end_line == self.span.line else len(line) + 1
        hidden = max(0, column - 1 - WIDTH // 2) if len(line) > WIDTH else 0
        shown = line[hidden : hidden + WIDTH]
        pad = "".join("\t" if c == "\t" else " " for c in shown[: column - 1 - hidden])
        width = max(1, min(last - column, WIDTH - len(pad)))
        return f"{head}\n{shown}\n{pad}{'^' * width}"


def printable(text: str) -> str:
    """The text with what could command a terminal, or is no text at all, shown as `\N{REPLACEMENT CHARACTER}`."""
    if text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\t\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


class Refusal(Exception):
    """A script, an image or a probe is refused; carries every diagnostic that could be told.

    `status` is the exit status: 1 compile and run-time errors, 2 bad usage, 3 a lack of privilege
    or kernel support.
    """

    def __init__(self, diagnostics: Sequence[Diagnostic], source: Optional[str] = None, status: int = 1) -> None:
        super().__init__("\n".join(d.message for d in diagnostics))
        self.diagnostics = tuple(diagnostics)
        self.source = source
        self.status = status

    def render(self) -> str:
        """All diagnostics, one after the other."""
        return "\n".join(d.render(self.source) for d in self.diagnostics)

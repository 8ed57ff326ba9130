"""Drawing distributions as text: print_hist, hist and lhist share one layout.

                              value ------------- Distribution ------------- count
                     sys_enter_read |@@@@@@@@@@@@                           287

A full bar is all samples: a row's bar is its share of the total.
"""

from __future__ import annotations

from typing import Iterable, Sequence

LABEL_WIDTH = 31
BAR_WIDTH = 39
TITLE = b" ------------- Distribution ------------- count"
SUFFIXES = "KMGTPE"

Row = tuple[bytes, int]
"""A label and how many."""


def draw(rows: Sequence[Row], total: int, more: bool = False) -> bytes:
    """The header and a line a row, each ended; labels longer than 31 bytes widen the column for all.

    `total` is what a full bar stands for, `more` adds the `...` for rows that are not drawn. Line breaks
    in a label are drawn as `; ` (stacks).
    """
    labels = [label.strip(b"\n").replace(b"\n", b"; ") for label, _ in rows]
    width = max([LABEL_WIDTH, *map(len, labels)])
    lines = [b"value".rjust(width) + TITLE]
    for label, (_, count) in zip(labels, rows):
        bar = b"@" * min(BAR_WIDTH, max(0, count) * BAR_WIDTH // max(1, total))
        lines.append(b"%b |%b%d" % (label.rjust(width), bar.ljust(BAR_WIDTH), count))
    if more:
        lines.append(b"...".rjust(width) + b" |")
    return b"\n".join(lines) + b"\n"


def draw_largest(rows: Iterable[Row], shown: int) -> bytes:
    """print_hist's picture: largest first, equal ones in the order given, `...` for those past `shown`."""
    ordered = sorted(rows, key=lambda row: -row[1])
    total = sum(max(0, count) for _, count in ordered)
    return draw(ordered[:shown], total, len(ordered) > shown)


def short(number: int) -> str:
    """A number with the suffix of the largest power of 1024 that divides it: 65536 is `64K`."""
    suffix = ""
    for letter in SUFFIXES:
        if number == 0 or number % 1024:
            break
        number //= 1024
        suffix = letter
    return f"{number}{suffix}"


def draw_powers(buckets: dict[int, int]) -> bytes:
    """hist's picture: bucket b counts the samples from 2**(b-1) up to 2**b; 0 is zero, -1 all below zero."""
    rows = []
    for bucket in range(min(buckets), max(buckets) + 1):
        if bucket < 0:
            label = "(..., 0)"
        elif bucket == 0:
            label = "[0, 1)"
        else:
            label = f"[{short(1 << (bucket - 1))}, {short(1 << bucket)})"
        rows.append((label.encode(), buckets.get(bucket, 0)))
    return draw(rows, sum(buckets.values()))


def draw_steps(buckets: dict[int, int], low: int, high: int, step: int) -> bytes:
    """lhist's picture: bucket b counts from low + b*step on; -1 is below low, the last one `high` and above."""
    last = steps(low, high, step)
    rows = []
    for bucket in range(min(buckets), max(buckets) + 1):
        if bucket < 0:
            label = f"(..., {low})"
        elif bucket == last:
            label = f"[{high}, ...)"
        else:
            start = low + bucket * step
            label = f"[{start}, {min(high, start + step)})"
        rows.append((label.encode(), buckets.get(bucket, 0)))
    return draw(rows, sum(buckets.values()))


def steps(low: int, high: int, step: int) -> int:
    """How many buckets lie between low and high."""
    return -(-(high - low) // step)

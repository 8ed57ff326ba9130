"""The tracing file system: where it is mounted, which tracepoints it has, and globs over them.

Source: Documentation/trace/events.rst; `available_events` is one file of `group:name` lines, which
is read in a millisecond where walking `events/` costs fifty.
"""

from __future__ import annotations

import errno
import os
import re
from fnmatch import translate
from typing import Iterable, Optional, Sequence

from ktap.event_format import EventFormat, parse_format
from vm.diagnostic import Diagnostic, Refusal
from vm.named_tuple import NamedTuple

MOUNTS = ("/sys/kernel/tracing", "/sys/kernel/debug/tracing")
"""Where tracefs is found, in order: its own mount point, then the one below debugfs."""

KINDS = ("probe", "sdt", "raw", "perf", "watch", "ftrace")
"""What events that are no tracepoints begin with, before a colon."""
TIMERS = ("tick", "profile")
"""And before a hyphen."""

REMEDIES = {
    errno.ENOENT: "not mounted; mount -t tracefs tracefs {path}, or run ktap doctor",
    errno.EACCES: "permission denied; run as root, or replay a recording with ktap --replay FILE",
    errno.EPERM: "not permitted; run as root, or replay a recording with ktap --replay FILE",
}
"""What is told for an error of opening tracefs."""


GROUP = re.compile(r"\bktap_(\d+)_(\d+)\b")
"""The groups of what runs of ktap define for themselves (ktap.own_group)."""


class TracepointName(NamedTuple):
    """A tracepoint: `sched` and `sched_switch`."""

    group: str
    name: str

    def __str__(self) -> str:
        """`sched:sched_switch`."""
        return f"{self.group}:{self.name}"


class Tracefs:
    """A mounted tracing file system; the list of its tracepoints is read once, when first asked for."""

    def __init__(self, root: str) -> None:
        self.root = root
        self._names: Optional[tuple[TracepointName, ...]] = None
        self._known: frozenset[TracepointName] = frozenset()

    def names(self) -> tuple[TracepointName, ...]:
        """Every tracepoint that can be enabled, in the kernel's order; not what runs of ktap define for themselves.

        Raises Refusal (status 3) where the list cannot be read.
        """
        if self._names is None:
            names = parse_names(self._read("available_events").decode())
            self._names = tuple(name for name in names if not GROUP.fullmatch(name.group))
            self._known = frozenset(self._names)
        return self._names

    def match(self, pattern: str) -> list[TracepointName]:
        """The tracepoints a script's event means: `sched:sched_switch`, `sched:*`, `s*:*`, a bare group, `id:316`.

        Empty where there is none; `unknown` then says what to tell the user.
        """
        group, name = split_pattern(pattern)
        if group == "id" and name.isdigit():
            return [n for n in self.names() if int(self._read(f"events/{n.group}/{n.name}/id")) == int(name)]
        exact = TracepointName(group, name)
        if not is_glob(pattern):
            if self._has(exact):
                return [exact]
            names = self.names()
            return [exact] if exact in self._known else [n for n in names if name == "*" and n.group == group]
        return match_names(self.names(), group, name)

    def _has(self, event: TracepointName) -> bool:
        """Whether there surely is a tracepoint: told without the list, which others who set up tracing keep locked."""
        if event in self._known:
            return True
        plain = (
            "/" not in event.group + event.name and event.group[:1] not in ("", ".") and event.name[:1] not in ("", ".")
        )
        return plain and os.path.exists(os.path.join(self.root, "events", *event, "enable"))

    def format(self, event: TracepointName) -> EventFormat:
        """The parsed `format` file of a tracepoint. Raises Refusal (status 3) where it cannot be read."""
        return parse_format(event.group, self.format_source(event))

    def format_source(self, event: TracepointName) -> str:
        """The text of that file. Raises Refusal (status 3)."""
        return self._read(f"events/{event.group}/{event.name}/format").decode()

    def unknown(self, pattern: str) -> tuple[str, Optional[str]]:
        """Message and hint for an event that matches no tracepoint."""
        return describe_unknown(pattern, self.names())

    def _read(self, path: str) -> bytes:
        full = os.path.join(self.root, path)
        try:
            with open(full, "rb") as file:
                return file.read()
        except OSError as error:
            raise refusal(full, error) from error


def parse_names(text: str) -> Iterable[TracepointName]:
    """The tracepoints of an `available_events` file."""
    for line in text.split("\n"):
        group, colon, name = line.partition(":")
        if colon:
            yield TracepointName(group, name)


def split_pattern(pattern: str) -> tuple[str, str]:
    """Group and name as globs: `sched:*`; a bare `syscalls` is the whole group; a leading `tp:` goes."""
    if pattern.startswith("tp:"):
        pattern = pattern[3:]
    group, _, name = pattern.partition(":")
    return group, name or "*"


def is_glob(pattern: str) -> bool:
    """Whether an event has a glob's characters in it."""
    return any(c in pattern for c in "*?[")


def match_names(names: Iterable[TracepointName], group: str, name: str) -> list[TracepointName]:
    """The tracepoints whose group and name match two globs, in the order given."""
    match = re.compile(f"{translate(group)[:-2]}:{translate(name)}").match
    return [n for n in names if match(f"{n[0]}:{n[1]}")]


def describe_unknown(pattern: str, names: Sequence[TracepointName]) -> tuple[str, Optional[str]]:
    """Message and hint for an event that matches none of `names`."""
    group, name = split_pattern(pattern)
    written = pattern[3:] if pattern.startswith("tp:") else pattern
    groups = {n.group for n in names}
    kind = _kind_meant(written)
    if is_glob(pattern):
        return f"no event matches `{written}`", "ktap list shows the events"
    if ":" not in written:
        same = [str(n) for n in names if n.name == written]
        if not same and kind is None:
            close = _closest(written, groups | {n.name for n in names})
            same = [one if one in groups else next(str(n) for n in names if n.name == one) for one in close]
        hint = _did_you_mean(same[:3] or ([] if kind is None else [kind]))
        return f"unknown event `{written}`", hint or "ktap list shows the events"
    if group not in groups:
        same = [str(n) for n in names if n.name == name]
        near = [f"{g}:{name}" for g in _closest(group, groups)] if kind is None else [kind]
        return f"unknown event group `{group}`", _did_you_mean(same[:3] or near) or "ktap list shows the events"
    own = [n.name for n in names if n.group == group]
    near = [f"{group}:{n}" for n in _closest(name, own) or _closest(f"{group}_{name}", own)]
    return f"unknown event `{written}`", _did_you_mean(near) or f"ktap list '{group}:*' shows the events of the group"


def _kind_meant(pattern: str) -> Optional[str]:
    """An event of another kind than tracepoints that was probably meant: `prob:x` is `probe:x`, `tik-1s` is `tick-1s`."""
    from compiler.spell import suggest
    from ktap.libraries import find_file

    head, found, rest = pattern.partition(":")
    if head == "tracepoint":
        return rest
    if found and find_file(head) is not None:
        return f"probe:{pattern}"
    for sign, kinds in ((":", KINDS), ("-", TIMERS)):
        head, found, rest = pattern.partition(sign)
        near = suggest(head, kinds) if found else None
        if near is not None:
            return f"{near}{sign}{rest}"
    return None


def _closest(word: str, candidates: Iterable[str]) -> list[str]:
    from difflib import get_close_matches

    return get_close_matches(word, sorted(candidates), n=3, cutoff=0.7)


def _did_you_mean(candidates: Sequence[str]) -> Optional[str]:
    if not candidates:
        return None
    return "did you mean " + " or ".join(f"`{c}`" for c in candidates) + "?"


def find(mounts: Sequence[str] = MOUNTS) -> Tracefs:
    """The mounted tracefs. Raises Refusal (status 3) with a remedy where there is none that can be read."""
    first: Optional[OSError] = None
    for root in mounts:
        try:
            with open(os.path.join(root, "available_events"), "rb"):
                return Tracefs(root)
        except OSError as error:
            if first is None or (first.errno == errno.ENOENT and error.errno != errno.ENOENT):
                first = OSError(error.errno, error.strerror, root)
    assert first is not None
    raise refusal(str(first.filename), first) from first


def refusal(path: str, error: OSError) -> Refusal:
    """What a user is told when `path` of tracefs cannot be opened."""
    remedy = REMEDIES.get(error.errno or 0, "{error}; run ktap doctor")
    message, _, hint = remedy.format(path=path, error=error.strerror).partition("; ")
    return Refusal([Diagnostic("ktap", None, f"cannot open {path}: {message}", hint or None)], status=3)

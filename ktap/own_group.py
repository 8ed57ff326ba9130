"""Definitions of events in the kernel (uprobe_events, kprobe_events, dynamic_events of tracefs), in a group of ktap's own.

Unlike file descriptors they outlive the process that made them. So a small process watches over them (ktap.keeper),
and removes the group when ktap has ended, however it ended. It also opens the perf events of places in code.

What a run could leave behind all the same (that process killed, too) is removed by the next run that defines
something: the group's name says whose it is.

Source: Documentation/trace/uprobetracer.rst, kprobetrace.rst, eprobetrace.rst.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import time
from contextlib import suppress
from typing import Dict, List, Optional, Sequence, Tuple

from ktap.keeper import Keeper
from ktap.perf_event import Attribute, open_event
from ktap.tracefs import GROUP as GROUP

COUNTED = ".counted"
INSTANCES = ("", COUNTED)
"""What the names of a group's instances end with."""
FILES = ("uprobe_events", "kprobe_events", "dynamic_events")
DEFINITION = re.compile(r"^\w+:([\w]+)/([\w]+)", re.M)
REMOVING_S = 20.0
"""So long it is tried to remove what is still in use."""
RETRY_S = 0.02
PROFILE = "kprobe_profile"
AT_ONCE = 20
"""So many lines are written to the kernel in one go; it takes a page."""


class OwnGroup:
    """The group of this process, below a root of tracefs. Nothing is made before the first definition."""

    def __init__(self, root: str) -> None:
        self.name = group_of(os.getpid())
        self._root = root
        self._keeper: Optional[Keeper] = None
        self._count = 0

    def define(self, file: str, head: str, places: Sequence[str]) -> str:
        """Define an event; its name. `head` is `p`, `r` or `e`; a place has its arguments behind it, and all are one event.

        Raises OSError that says what the kernel did not take.
        """
        self.guard()
        name = f"e{self._count}_{os.getpid()}"  # the kernel's profile of probes has no groups
        self._count += 1
        path = os.path.join(self._root, file)
        lines = [f"{head}:{self.name}/{name} {place}" for place in places]
        done = 0
        while done < len(lines):
            some = lines[done : done + AT_ONCE]
            try:
                write(path, "\n".join(some))
            except OSError as error:
                raise OSError(error.errno, f"{error.strerror}{self._why()}", some[0].split(None, 1)[1]) from error
            done += len(some)
        return name

    def guard(self) -> Keeper:
        """The process that watches over the group; when it starts, what others have left is removed."""
        if self._keeper is None:
            sweep(self._root)
            root, name = self._root, self.name
            self._keeper = Keeper({"open": _open, "join": _join}, lambda: remove(root, name))
        return self._keeper

    @property
    def keeper(self) -> Optional[int]:
        """The number of the process that watches, None where there is none."""
        return None if self._keeper is None else self._keeper.number

    def _why(self) -> str:
        """What the kernel says was wrong with the last definition."""
        with suppress(OSError):
            with open(os.path.join(self._root, "error_log"), errors="replace") as file:
                last = file.read().rpartition("error: ")[2].partition("\n")[0].strip()
            return f" ({last})" if last else ""
        return ""

    def missed(self) -> Dict[str, int]:
        """How often the kernel could not serve probes of its functions, by event, as far as it tells."""
        found: Dict[str, int] = {}
        with suppress(OSError), open(os.path.join(self._root, PROFILE)) as file:
            for line in file:
                name, _, missed = line.split()
                found[name] = found.get(name, 0) + int(missed)
        return found

    def directory(self, name: str) -> str:
        """The directory of an event."""
        return os.path.join(self._root, "events", self.name, name)

    def open(self, attribute: Attribute, text: bytes, cpu: int, what: str, leader: int = -1) -> int:
        """See perf_event.open_event: a perf event of a place in code, of all processes. Raises OSError.

        The attribute's `config1` is to point at the text, where there is one.
        """
        if leader >= 0:
            return self.guard().call("join", (tuple(attribute), cpu, what), [leader])
        return self.guard().call("open", (tuple(attribute), text, cpu, what))

    def close(self) -> None:
        """Remove everything. Safe to call twice."""
        if self._keeper is not None:
            keeper, self._keeper = self._keeper, None
            keeper.let_go()
            remove(self._root, self.name)
            keeper.close()


def _open(numbers: Tuple[int, ...], text: bytes, cpu: int, what: str) -> int:
    """In the process that watches."""
    attribute = Attribute(*numbers)
    room = ctypes.create_string_buffer(text)
    if text:
        attribute = attribute._replace(config1=ctypes.addressof(room))
    return open_event(attribute, cpu, -1, what)


def _join(leader: int, numbers: Tuple[int, ...], cpu: int, what: str) -> int:
    """The same, in the group of a leader."""
    return open_event(Attribute(*numbers), cpu, -1, what, leader)


def write(path: str, text: str) -> None:
    """Append a line to a file of tracefs. Raises OSError."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    try:
        os.write(file, text.encode("utf-8", "surrogateescape") + b"\n")
    finally:
        os.close(file)


def group_of(pid: int) -> str:
    """The name of a process's group: no other process ever has the same number and start."""
    return f"ktap_{pid}_{started(pid)}"


def started(pid: int) -> int:
    """When a process started, in ticks since boot. Raises OSError where there is none."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        data = file.read()
    return int(data[data.rfind(b")") + 2 :].split()[19])


def definitions(root: str) -> Dict[str, List[Tuple[str, str]]]:
    """The events of all groups of ktap's: by group, each with the file it is defined in."""
    found: Dict[str, List[Tuple[str, str]]] = {}
    for file in FILES:
        try:
            with open(os.path.join(root, file), errors="replace") as opened:
                text = opened.read()
        except OSError:
            continue
        for group, name in DEFINITION.findall(text):
            if GROUP.fullmatch(group) and all(name != other for other, _ in found.get(group, ())):
                found.setdefault(group, []).append((name, file))
    return found


def remove(root: str, group: str) -> None:
    """Remove a group's instances and events; what is in use is tried again for a while."""
    end = time.monotonic() + REMOVING_S
    instances = [os.path.join(root, "instances", group + kind) for kind in INSTANCES]
    while True:
        for instance in instances:
            with suppress(FileNotFoundError):
                try:
                    os.rmdir(instance)
                except OSError as error:
                    if error.errno != errno.EBUSY:
                        raise
        left = definitions(root).get(group, [])
        for name, file in left:
            with suppress(OSError):
                write(os.path.join(root, file), f"-:{group}/{name}")
        if (not left and not any(map(os.path.exists, instances))) or time.monotonic() > end:
            return
        if definitions(root).get(group) or any(map(os.path.exists, instances)):
            time.sleep(RETRY_S)


def sweep(root: str) -> None:
    """Remove the groups of processes that are no more."""
    groups = set(definitions(root))
    with suppress(OSError):
        names = (name.partition(".")[0] for name in os.listdir(os.path.join(root, "instances")))
        groups |= {name for name in names if GROUP.fullmatch(name)}
    for group in groups:
        match = GROUP.fullmatch(group)
        assert match is not None
        try:
            alive = started(int(match[1])) == int(match[2])
        except OSError:
            alive = False
        if not alive:
            with suppress(OSError):
                remove(root, group)

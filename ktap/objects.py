"""The kernel objects of a run: maps, programs and what they hang on, made or taken from those that were made early.

    objects = Objects(keep)
    fd = objects.map(kernel.HASH, "ktap_table0", 16, 8, 100)
    ...
    objects.finish()        # all is live

Whoever is given an object closes it. See ktap.early.
"""

from __future__ import annotations

from typing import Callable, Dict, List, Mapping, Optional, Sequence, Union

from compiler.bpf import Code, KernelVariable, MapFd, link
from ktap import early, kernel
from ktap.early import Early
from ktap.open_files import allow_files

OWN_PROCESS, REALTIME_OFFSET = "own_process", "realtime_offset"
"""References of programs whose values differ from run to run."""

Value = Union[int, MapFd, KernelVariable]
"""What a reference of a program stands for."""
Keep = Callable[[Sequence[bytes]], None]


class Stale(Exception):
    """What was made early is not what this run makes."""


class Objects:
    """Makes objects, and notes how."""

    def __init__(self, keep: Optional[Keep] = None) -> None:
        """`keep` is given the steps of a run whose next may begin with them; without it nothing is taken either."""
        self._keep = keep
        self._early: Optional[Early] = early.take() if keep is not None else None
        self._steps: List[bytes] = []
        self._numbers: Dict[int, int] = {}
        """The number of an object, by its file descriptor."""
        self._made = 0
        """How many objects there are."""

    def restart(self) -> None:
        """Everything that was made has been closed, and is made anew."""
        if self._early is not None:
            early.close(self._early.made[len(self._steps) :])
            self._early = None
        self._steps, self._numbers, self._made = [], {}, 0

    def unfit(self) -> None:
        """Something is made of which no note can be taken. Raises Stale where anything was made early."""
        self._keep = None
        if self._early is not None:
            raise Stale

    def finish(self) -> None:
        """All is live. Raises Stale where more was made early."""
        if self._early is not None:
            if len(self._early.made) > len(self._steps):
                raise Stale
            early.taken(self._early)
            self._early = None
        elif self._keep is not None:
            self._keep(self._steps)

    @property
    def taking(self) -> bool:
        """Whether objects are taken: then the kernel has taken all programs already."""
        return self._early is not None

    # -- what there is --------------------------------------------------------------------------

    def map(self, kind: int, name: str, key_bytes: int, value_bytes: int, entries: int, flags: int = 0) -> int:
        """See kernel.create_map."""
        step = early.step(early.MAP, (kind, key_bytes, value_bytes, entries, flags), name.encode())
        return self._object(step, lambda: kernel.create_map(kind, name, key_bytes, value_bytes, entries, flags))

    def map_of_maps(self, name: str, inner: int) -> int:
        """See kernel.create_map_of_maps."""
        step = early.step(early.OUTER_MAP, (self._numbers.get(inner, 0),), name.encode())
        return self._object(step, lambda: kernel.create_map_of_maps(name, inner))

    def update(self, fd: int, key: bytes, value: bytes) -> None:
        """See kernel.update: at the start only, before anything is live."""
        step = early.step(early.UPDATE, (self._numbers.get(fd, 0),), key, value)
        if self._next(step) is None:
            kernel.update(fd, key, value)
        self._steps.append(step)

    def program(
        self,
        kind: int,
        name: str,
        code: Code,
        values: Mapping[str, Value],
        attach_type: int,
        load: Callable[[bytes], int],
    ) -> int:
        """A program of which `load` gives the file descriptor. `values` has those of its references."""
        if self._keep is not None and not all(self._is_noted(r.name, values[r.name]) for r in code.references):
            self.unfit()
        if self._keep is None:
            return load(link(code, values))
        step = early.step(early.PROGRAM, (kind, attach_type), name.encode(), *self._template(code, values))
        return self._object(step, lambda: load(link(code, values)))

    def _is_noted(self, name: str, value: Value) -> bool:
        """Whether a reference can be filled in again by the next run."""
        return value.fd in self._numbers if isinstance(value, MapFd) else name != REALTIME_OFFSET

    def _template(self, code: Code, values: Mapping[str, Value]) -> Sequence[bytes]:
        """The instructions with maps as their numbers and without this process, and the places of both."""
        plain: Dict[str, Value] = {}
        kinds: Dict[str, int] = {}
        for name, value in values.items():
            if isinstance(value, MapFd) and value.fd in self._numbers:
                plain[name], kinds[name] = MapFd(self._numbers[value.fd]), early.A_MAP
            elif name == OWN_PROCESS:
                plain[name], kinds[name] = 0, early.OWN_PROCESS
            else:
                plain[name] = value
        places = [early.PLACE.pack(r.offset, kinds[r.name]) for r in code.references if r.name in kinds]
        return link(code, plain), b"".join(places)

    def raw_tracepoint(self, program: int, name: str) -> int:
        """See kernel.attach_raw_tracepoint."""
        step = early.step(early.RAW_TRACEPOINT, (self._numbers.get(program, 0),), name.encode())
        return self._object(step, lambda: kernel.attach_raw_tracepoint(program, name))

    def perf_event(
        self, counter: kernel.Counter, cpu: int, program: int, what: str = "perf event", counting: bool = True
    ) -> int:
        """See kernel.run_at_perf_event."""
        attribute = counter.attribute
        step = early.step(early.PERF_EVENT, (self._numbers.get(program, 0), cpu, counting), attribute)
        return self._object(step, lambda: kernel.run_at_perf_event(attribute, cpu, program, counting, what))

    def files(self, count: int) -> None:
        """See ktap.open_files."""
        step = early.step(early.FILES, (count,))
        if self._next(step) is None:
            allow_files(count)
        self._steps.append(step)

    # -- made or taken --------------------------------------------------------------------------

    def _object(self, step: bytes, make: Callable[[], int]) -> int:
        found = self._next(step)
        fd = make() if found is None else found
        self._steps.append(step)
        self._numbers[fd] = self._made
        self._made += 1
        return fd

    def _next(self, step: bytes) -> Optional[int]:
        """What the next step gave when it was done early, None where nothing was. Raises Stale where that was another."""
        if self._early is None:
            return None
        place = len(self._steps)
        if place == len(self._early.made) or self._early.made[place][0] != step:
            raise Stale
        return self._early.made[place][1]

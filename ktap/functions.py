"""The kernel's functions by name: which there are, where they begin, which must not be probed, which are like a word.

Sources: /proc/kallsyms; `available_filter_functions` of tracefs, which has what the function tracer can trace;
`kprobes/blacklist` of debugfs, which has what the kernel refuses probes in. A file is read when it is first
needed: kallsyms alone takes a tenth of a second.
"""

from __future__ import annotations

import re
from fnmatch import translate
from functools import cache
from typing import Dict, FrozenSet, Iterable, List, Mapping, Optional, Sequence, Tuple

from ktap import links, tracefs
from vm.diagnostic import Refusal

KALLSYMS = "/proc/kallsyms"
BLACKLIST = "/sys/kernel/debug/kprobes/blacklist"
FILTER_FUNCTIONS = "available_filter_functions"
FILTER_ADDRESSES = "available_filter_functions_addrs"
"""The same with addresses in front (Linux 6.5)."""

NEVER = frozenset(
    {
        *("migrate_disable", "migrate_enable", "__migrate_disable", "__migrate_enable"),
        *("__rcu_read_lock", "__rcu_read_unlock", "rcu_read_unlock_strict", "rcu_read_lock_held"),
        *("preempt_count_add", "preempt_count_sub", "rcu_is_watching", "__rcu_is_watching"),
        *("trace_call_bpf", "kprobe_multi_link_prog_run", "perf_trace_buf_alloc", "ktime_get_mono_fast_ns"),
        *("get_callchain_buffers", "get_callchain_entry", "put_callchain_entry", "bpf_get_stack", "get_perf_callchain"),
    }
)
"""What the kernel runs for every probe itself: probes there are missed at best."""
NEVER_GLOBS = ("bpf_*", "__bpf_*", "*perf_callchain*", "*ring_buffer*", "rethook_*", "fprobe_*", "arch_rethook_*")
"""The same by glob: a glob of a script leaves them out, a name that is written in full does not."""
MOST_NEAR = 3
MOST_PREFIX_BYTES = 16
"""Between a function's beginning and the place that the function tracer uses."""
WORD = re.compile(r"[a-z]+|\d+")
PLUMBING_WORDS = {"do", "sys", "ksys", "x", "enter", "exit", "vfs"}
"""Words of names that say nothing of what a function does."""


class KernelFunctions:
    """See above. Every lookup raises Refusal (status 3) only where tracefs cannot be found at all."""

    def __init__(self) -> None:
        self._text: Optional[bytes] = None
        self._blacklist: Optional[FrozenSet[str]] = None
        self._traceable: Optional[Dict[str, List[int]]] = None

    def can_be_probed(self) -> bool:
        """Whether the kernel has any way to probe them."""
        return links.probe_type() is not None or links.has_multi()

    def addresses(self, names: Iterable[str]) -> Mapping[str, List[int]]:
        """Where functions begin: several places for a name that several files have for functions of their own."""
        wanted = {name.encode() for name in names}
        found: Dict[str, List[int]] = {}
        if len(wanted) == 1:
            pattern = rb"^([0-9a-f]+) [tTwW] (" + re.escape(next(iter(wanted))) + rb")(?:\s|$)"
        else:
            pattern = rb"^([0-9a-f]+) [tTwW] (\S+)"
        for match in re.finditer(pattern, self._kallsyms(), re.M):
            if match[2] in wanted:
                found.setdefault(match[2].decode(), []).append(int(match[1], 16))
        return found

    def matching(self, pattern: str) -> Mapping[str, List[int]]:
        """The functions that a glob means and that can be probed: those of the function tracer, where there is one.

        Functions of one name are left out where it cannot be told which of them can be.
        """
        compiled = re.compile(translate(pattern))
        never = re.compile("|".join(translate(glob) for glob in NEVER_GLOBS))
        named_so = pattern.lstrip("_").startswith(("bpf", "perf", "ring", "rethook", "fprobe"))
        known = self._all_traceable()
        names = [
            name
            for name in known
            if compiled.match(name)
            and not self.is_refused(name)
            and "." not in name[1:]
            and (named_so or not never.match(name))
        ]
        looked_up = self.addresses(names)
        found = {name: _beginnings(looked_up.get(name, []), known[name]) for name in sorted(names)}
        return {name: places for name, places in found.items() if places}

    def is_refused(self, name: str) -> bool:
        """Whether a function must not be probed."""
        if self._blacklist is None:
            lines = _read(BLACKLIST).decode().split("\n")
            self._blacklist = frozenset(line.partition("\t")[2] for line in lines)
        return name in NEVER or name in self._blacklist

    def near(self, name: str) -> Tuple[str, ...]:
        """Functions whose names are like a word: copies of it that the compiler made, else what it may be a slip for."""
        names = re.findall(rb"^[0-9a-f]+ [tTwW] (\S+)", self._kallsyms(), re.M)
        copies = [other.decode() for other in names if other.startswith(name.encode() + b".")]
        if copies:
            return tuple(sorted(set(copies))[:MOST_NEAR])
        from compiler.spell import suggest

        start = name[:2].encode()
        close = {
            other.decode()
            for other in names
            if abs(len(other) - len(name)) <= 2 and (other[:2] == start or other[-4:] == name[-4:].encode())
        }
        best = suggest(name, close)
        return (best,) if best else ()

    def _kallsyms(self) -> bytes:
        if self._text is None:
            self._text = _read(KALLSYMS)
        return self._text

    def _all_traceable(self) -> Dict[str, List[int]]:
        """The names of the function tracer, with the addresses it tells."""
        if self._traceable is not None:
            return self._traceable
        found: Dict[str, List[int]] = {}
        root = tracefs.find().root
        for line in _read(f"{root}/{FILTER_ADDRESSES}").decode().split("\n"):
            address, _, rest = line.partition(" ")
            name = rest.partition(" ")[0]
            if name:
                found.setdefault(name, []).append(int(address, 16))
        if not found:
            for line in _read(f"{root}/{FILTER_FUNCTIONS}").decode().split("\n"):
                name = line.partition(" ")[0]
                if name:
                    found.setdefault(name, [])
        if not found:
            for match in re.finditer(rb"^[0-9a-f]+ [tT] (\S+)", self._kallsyms(), re.M):
                found.setdefault(match[1].decode(), [])
        self._traceable = {name: places for name, places in found.items() if not name.startswith("__ftrace_invalid")}
        return self._traceable


def _beginnings(addresses: Sequence[int], traced: Sequence[int]) -> List[int]:
    """Where functions of one name begin that the function tracer can trace, a few bytes behind their beginning."""
    if not traced:
        return list(addresses) if len(addresses) == 1 else []
    return [address for address in addresses if any(0 <= place - address <= MOST_PREFIX_BYTES for place in traced)]


def near_tracepoints(name: str) -> Tuple[str, ...]:
    """Tracepoints that come near a function: those that share the rarest words of its name."""
    try:
        names = tracefs.find().names()
    except Refusal:
        return ()
    wanted = set(WORD.findall(name.lower())) - PLUMBING_WORDS
    ranked = []
    for one in names:
        own = set(WORD.findall(one.name.lower())) - PLUMBING_WORDS
        shared = len(wanted & own)
        if shared and not one.name.startswith("sys_exit_"):
            ranked.append((-shared * shared / len(wanted) / len(own), str(one)))
    return tuple(label for _, label in sorted(ranked)[:MOST_NEAR])


def _read(path: str) -> bytes:
    """A file of the kernel, empty where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


@cache
def kernel_functions() -> KernelFunctions:
    """The running kernel's."""
    return KernelFunctions()

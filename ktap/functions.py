"""The kernel's functions by name: which there are, where they begin, which must not be probed, which are like a word.

Sources: /proc/kallsyms; `available_filter_functions` of tracefs, which has what the function tracer can trace;
`kprobes/blacklist` of debugfs, which has what the kernel refuses probes in. A file is read when it is first
needed: kallsyms alone takes a tenth of a second.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from fnmatch import translate
from functools import cache
from typing import Dict, FrozenSet, Iterable, List, Mapping, Optional, Sequence, Set, Tuple

from ktap import links, tracefs
from vm.diagnostic import Refusal
from vm.named_tuple import NamedTuple

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
LOCKS = re.compile(
    r"_*(do_)?raw_(spin|read|write)_.*|(native_|pv_)?queued_(spin|read|write)_.*|lock_(acquire|release)(d|s)?|rqspin.*"
)
"""Locks that programs of probes take, too: to send an event, to change an entry of a map. A probe on the release of one
that a program holds would wait for it for ever, and the machine with it."""
PATCHING = re.compile(
    r"(smp_|__)?text_poke.*|poke_int3_handler|ftrace_(replace_code|arch_code_modify.*|bug|int3_handler)|arch_ftrace_.*"
)
"""What changes code while probes are set."""
NEVER_GLOBS = (
    *("bpf_*", "__bpf_*", "*htab_*", "array_map_*", "percpu_array_*", "stack_map_*", "*ringbuf_*", "__cgroup_bpf_*"),
    *("*perf_callchain*", "*perf_event_output*", "perf_output_*", "perf_swevent_*", "perf_trace_*", "perf_tp_*"),
    *("*ring_buffer*", "trace_event_buffer_*", "trace_clock_*", "*kprobe*", "*kretprobe*", "*uprobe*"),
    *("rethook_*", "fprobe_*", "arch_rethook_*", "ftrace_*", "__ftrace_*", "function_trace_*"),
    *(
        "copy_from_kernel_nofault*",
        "copy_from_user_nofault*",
        "strncpy_from_*_nofault*",
        "sched_clock*",
        "local_clock*",
    ),
)
"""What the kernel runs for some probes: a glob of a script leaves them out, a name that is written in full does not."""
OWN_WORDS = (
    "bpf",
    "perf",
    "ring",
    "rethook",
    "fprobe",
    "ftrace",
    "kprobe",
    "kretprobe",
    "uprobe",
    "htab",
    "copy",
    "strncpy",
)
"""A glob that begins so means them."""
NO_PROBES = ("__noinstr_text", "__entry_text", "__kprobes_text")
"""Code where no probe may be, between the symbols `_start` and `_end`: where debugfs is not mounted to tell each function."""
BOUNDS = re.compile(rb"^([0-9a-f]+) \S ((?:%s)_(?:start|end))$" % "|".join(NO_PROBES).encode(), re.M)
MOST_NEAR = 3
MOST_PREFIX_BYTES = 16
"""Between a function's beginning and the place that the function tracer uses."""
WORD = re.compile(r"[a-z]+\d*|\d+")
PLUMBING_WORDS = {"do", "sys", "ksys", "x", "x64", "enter", "exit", "vfs"}
"""Words of names that say nothing of what a function does."""
USUAL_GROUPS = frozenset(
    [
        "syscalls",
        "sched",
        "task",
        "block",
        "filemap",
        "writeback",
        "kmem",
        "irq",
        "timer",
        "signal",
        "net",
        "sock",
        "tcp",
        "skb",
    ]
)
"""Groups of tracepoints that are more often meant than others."""
LEAST_COMMON = 4
"""Letters of a word that another may begin with."""


class KernelFunctions:
    """See above. Every lookup raises Refusal (status 3) only where tracefs cannot be found at all."""

    def __init__(self) -> None:
        self._text: Optional[bytes] = None
        self._blacklist: Optional[FrozenSet[str]] = None
        self._ranges: Optional[Sequence[Tuple[int, int]]] = None
        self._traced: Optional[Traced] = None

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

    def symbol(self, name: str) -> Optional[int]:
        """Where anything of a name begins, data too; None where there is nothing of that name."""
        found = re.search(rb"^([0-9a-f]+) \S (" + re.escape(name.encode()) + rb")(?:\s|$)", self._kallsyms(), re.M)
        return int(found[1], 16) if found else None

    def matching(self, pattern: str) -> Mapping[str, List[int]]:
        """The functions that a glob means and that can be probed: those of the function tracer, where there is one.

        Functions of one name are left out where it cannot be told which of them can be.
        """
        match = re.compile(translate(pattern)).match
        never = re.compile("|".join(translate(glob) for glob in NEVER_GLOBS)).match
        if pattern.lstrip("_").startswith(OWN_WORDS):
            never = re.compile(r"(?!)").match
        forbidden = self._forbidden()
        found: Dict[str, List[int]] = {}
        met: Set[int] = set()
        for line in re.finditer(rb"^([0-9a-f]+) [tTwW] ([^\s.$]+)(?=\s|$)", self._kallsyms(), re.M):
            name = line[2].decode()
            if match(name) is None or never(name) is not None or self.is_refused(name):
                continue
            address = int(line[1], 16)
            if address not in met and not any(
                start <= address < end for start, end in forbidden
            ):  # of several names of one function the first
                met.add(address)
                found.setdefault(name, []).append(address)
        traced = self._all_traced()
        return {name: places for name in sorted(found) if (places := traced.among(name, found[name]))}

    def is_refused(self, name: str) -> bool:
        """Whether a function must not be probed."""
        return self.why_refused(name) is not None

    def why_refused(self, name: str, unsafe: bool = False) -> Optional[str]:
        """Why a function must not be probed; None where it may be, or where the user takes the risk (`unsafe`)."""
        if name in self._refused_by_kernel():
            return "the kernel refuses probes there, since it runs it to serve them"
        if unsafe:
            return None
        if name in NEVER:
            return "the kernel runs it for every probe"
        if LOCKS.fullmatch(name):
            return "probes take such locks themselves, so that the machine could hang"
        return "it changes code while probes are set" if PATCHING.fullmatch(name) else None

    def is_forbidden(self, address: int) -> bool:
        """Whether a function begins where no probe may be."""
        return any(start <= address < end for start, end in self._forbidden())

    def _forbidden(self) -> Sequence[Tuple[int, int]]:
        if self._ranges is None:
            self._ranges = []
            if not self._refused_by_kernel():
                places = {match[2].decode(): int(match[1], 16) for match in BOUNDS.finditer(self._kallsyms())}
                bounds = [(places.get(f"{name}_start", 0), places.get(f"{name}_end", 0)) for name in NO_PROBES]
                self._ranges = [(start, end) for start, end in bounds if start]
        return self._ranges

    def _refused_by_kernel(self) -> FrozenSet[str]:
        if self._blacklist is None:
            lines = _read(BLACKLIST).decode().split("\n")
            self._blacklist = frozenset(line.partition("\t")[2] for line in lines if line)
        return self._blacklist

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

    def _all_traced(self) -> Traced:
        if self._traced is None:
            self._traced = _read_traced(tracefs.find().root)
        return self._traced


class TracedFunctions(KernelFunctions):
    """The same for who can also take the function tracer (ktap.function_tracer)."""

    def can_be_probed(self) -> bool:
        """Whether the kernel has any way to probe or to trace them."""
        return super().can_be_probed() or bool(self._all_traced().places or self._all_traced().names)


class Traced(NamedTuple):
    """What the function tracer can trace: places, in order, or else only names; neither where it does not say."""

    places: Sequence[int] = ()
    names: FrozenSet[str] = frozenset()

    def among(self, name: str, addresses: Sequence[int]) -> List[int]:
        """Which functions of a name, that begin at some addresses, can be traced."""
        if self.places:
            return [address for address in addresses if self._soon_behind(address)]
        if self.names and (name not in self.names or len(addresses) > 1):
            return []
        return list(addresses)

    def _soon_behind(self, address: int) -> bool:
        at = bisect_left(self.places, address)
        return at < len(self.places) and self.places[at] - address <= MOST_PREFIX_BYTES


def _read_traced(root: str) -> Traced:
    with_places = _read(f"{root}/{FILTER_ADDRESSES}")
    places = sorted(int(match[1], 16) for match in re.finditer(rb"^(?:0x)?([0-9a-f]+) ", with_places, re.M))
    if places:
        return Traced(places)
    names = re.findall(rb"^(\S+)", _read(f"{root}/{FILTER_FUNCTIONS}"), re.M)
    return Traced((), frozenset(name.decode() for name in names))


def near_tracepoints(name: str) -> Tuple[str, ...]:
    """Tracepoints that come near a function: those whose names have the words of its name, and groups that are called so."""
    try:
        names = tracefs.find().names()
    except Refusal:
        return ()
    wanted = _words(name)
    words = {one: _words(one.name) for one in names if not one.name.startswith("sys_exit_")}
    uses = Counter(word for own in words.values() for word in own)
    ranked: List[Tuple[float, int, str]] = []
    for one, own in words.items():
        shared = {word: alike for word in wanted if (alike := max((_alike(word, other) for other in own), default=0.0))}
        if not shared or (set(shared) == {one.group} and own != wanted):  # the group as a whole comes as near
            continue
        score = sum(shared.values()) / max(len(wanted), len(own)) * (1 if one.group in USUAL_GROUPS | wanted else 0.4)
        ranked.append((-score, min(uses[word] for word in shared), str(one)))
    groups = sorted({one.group for one in names if any(one.group in (word, word[:5]) for word in wanted)})
    best = min(ranked, default=(0.0, 0, ""))[0]
    near = [label for score, _, label in sorted(ranked) if score <= best / 2][:MOST_NEAR]
    return (*near, *(f"{group}:*" for group in groups if not any(label.startswith(f"{group}:") for label in near)))


def _words(name: str) -> FrozenSet[str]:
    return frozenset(WORD.findall(name.lower())) - PLUMBING_WORDS


def _alike(word: str, other: str) -> float:
    """1 for the same word, a half where one begins with the other."""
    if word == other:
        return 1
    short, long = sorted((word, other), key=len)
    return 0.5 if len(short) >= LEAST_COMMON and long.startswith(short) else 0


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


@cache
def traced_functions() -> KernelFunctions:
    """The running kernel's, for who can also take the function tracer."""
    return TracedFunctions()

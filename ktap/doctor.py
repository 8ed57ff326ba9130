"""`ktap doctor`: what tracing needs of this machine, what of it works, and what to do about the rest.

Nothing is guessed from version numbers: programs are loaded, events opened, files read.
"""

from __future__ import annotations

import os
from typing import Callable, Optional

from vm.named_tuple import NamedTuple

BPF_CAPABILITIES = {"CAP_BPF": 39, "CAP_PERFMON": 38, "CAP_SYS_ADMIN": 21}
"""Bit numbers of linux/capability.h."""


class Finding(NamedTuple):
    """What a check found; `remedy` is what to do when it is not well."""

    well: bool
    what: str
    remedy: str = ""


class Check(NamedTuple):
    """One row: what is looked at, what for, whether tracing is impossible without it."""

    name: str
    needed: bool
    purpose: str
    look: Callable[[], Finding]


def privilege() -> Finding:
    """Root, or the capabilities that tracing takes."""
    held = _capabilities()
    if os.geteuid() == 0 and held & 1 << BPF_CAPABILITIES["CAP_SYS_ADMIN"]:
        return Finding(True, "root")
    if held & 1 << BPF_CAPABILITIES["CAP_BPF"] and held & 1 << BPF_CAPABILITIES["CAP_PERFMON"]:
        return Finding(True, "CAP_BPF and CAP_PERFMON")
    if held & 1 << BPF_CAPABILITIES["CAP_PERFMON"]:
        return Finding(True, "CAP_PERFMON, so without BPF")
    return Finding(False, f"user {os.geteuid()} without CAP_BPF and CAP_PERFMON", "run with sudo")


def _capabilities() -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1], 16) for line in file if line.startswith("CapEff:"))


def bpf_programs() -> Finding:
    """Load and attach a small program, as every probe does."""
    from ktap import kernel

    program = kernel.load(kernel.RAW_TRACEPOINT, kernel.calls(kernel.GET_CURRENT_PID_TGID))
    try:
        os.close(kernel.attach_raw_tracepoint(program, "sys_enter"))
    finally:
        os.close(program)
    return Finding(True, f"loaded and attached; instruction set {kernel.instruction_set()}")


def backend() -> Finding:
    """How a run would reach events if nothing is said."""
    from ktap import backends

    reason = backends.why_no_bpf()
    if reason is None:
        return Finding(True, "bpf")
    well = backends.samples_everyone()
    return Finding(well, f"perf, without BPF ({reason})" if well else f"none: {reason}", "run with sudo")


def perf_events() -> Finding:
    """Open an event of all processes, as perf buffers are made of, and as --backend perf samples."""
    from ktap import kernel

    counter = kernel.Counter(kernel.TYPE_SOFTWARE, kernel.BPF_OUTPUT, 1, kernel.SAMPLE_RAW)
    os.close(kernel.open_perf_event(counter, kernel.online_cpus()[0]))
    return Finding(True, f"opened; kernel.perf_event_paranoid is {_read('/proc/sys/kernel/perf_event_paranoid')}")


def ring_buffer() -> Finding:
    """Make the smallest ring buffer."""
    from ktap import kernel

    os.close(kernel.create_map(kernel.RINGBUF, "ktap_doctor", 0, 0, os.sysconf("SC_PAGE_SIZE")))
    return Finding(True, "made")


def tracefs() -> Finding:
    """Find tracefs and count its events."""
    from ktap.tracefs import MOUNTS

    for path in MOUNTS:
        if os.path.exists(f"{path}/available_events"):
            with open(f"{path}/available_events") as file:
                return Finding(True, f"{path} with {sum(1 for _ in file)} events")
    if any(os.path.ismount(path) for path in MOUNTS):
        return Finding(False, "mounted, but not readable", "run with sudo")
    return Finding(False, "not mounted", f"mount -t tracefs tracefs {MOUNTS[0]}")


def system_calls() -> Finding:
    """The events all system calls are traced through."""
    from ktap.tracefs import MOUNTS

    well = any(os.path.exists(f"{path}/events/raw_syscalls/sys_enter/format") for path in MOUNTS)
    return Finding(well, "events are there" if well else "no such events", "a kernel with CONFIG_FTRACE_SYSCALLS")


def btf() -> Finding:
    """The kernel's own types."""
    path = "/sys/kernel/btf/vmlinux"
    well = os.path.exists(path)
    return Finding(well, path if well else "none", "a kernel with CONFIG_DEBUG_INFO_BTF")


def kernel_symbols() -> Finding:
    """Addresses are zero for those who may not read them."""
    with open("/proc/kallsyms") as file:
        well = int(file.readline().split()[0], 16) != 0
    return Finding(well, "readable" if well else "addresses are hidden", "run with sudo; see kernel.kptr_restrict")


def probe_device(name: str, option: str) -> Callable[[], Finding]:
    """A check for one of the kernel's two kinds of dynamic probes."""

    def look() -> Finding:
        well = os.path.exists(f"/sys/bus/event_source/devices/{name}/type")
        return Finding(well, "there" if well else "not built into this kernel", f"a kernel with {option}")

    return look


def locked_memory() -> Finding:
    """Kernels before 5.11 count maps against this limit; ktap lifts it where it may."""
    import resource

    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    unlimited = limit == resource.RLIM_INFINITY
    old = tuple(int(part) for part in os.uname().release.split(".")[:2]) < (5, 11)
    return Finding(unlimited or not old, "no limit" if unlimited else f"{limit >> 10} KiB", "ulimit -l unlimited")


def library(module: str, remedy: str) -> Callable[[], Finding]:
    """A check that a Python package can be imported."""

    def look() -> Finding:
        import importlib

        found = importlib.import_module(module)
        version = getattr(found, "__version__", "")
        return Finding(True, f"{module} {version}".strip(), remedy)

    look.__doc__ = remedy
    return look


def bcc() -> Finding:
    """BCC's library, through its Python module."""
    from ktap import libbcc

    missing = libbcc.missing()
    return Finding(missing is None, missing or "libbcc through python3-bpfcc", BCC_REMEDY)


BCC_REMEDY = "apt-get install python3-bpfcc, in a venv made with --system-site-packages from /usr/bin/python3"
PIP_REMEDY = "make run, or pip install"

CHECKS: tuple[Check, ...] = (
    Check("privilege", True, "for any live event", privilege),
    Check("backend", True, "for any live event", backend),
    Check("BPF programs", False, "for --backend bpf; perf events do the same, slower", bpf_programs),
    Check("perf events", True, "for --backend perf, perf buffers and profile-", perf_events),
    Check("tracefs", True, "for names and fields of events", tracefs),
    Check("libbcc", False, "for loading programs; bpf(2) does the same", bcc),
    Check("llvmlite", False, "for --backend bpf", library("llvmlite", f"{PIP_REMEDY} llvmlite")),
    Check("lark", True, "for compiling scripts", library("lark", f"{PIP_REMEDY} lark")),
    Check("ring buffers", False, "for --buffer ring; perf buffers do the same", ring_buffer),
    Check("system calls", False, "for syscalls:*", system_calls),
    Check("BTF", False, "for curtask and raw: arguments by name", btf),
    Check("kernel symbols", False, "for names of kernel addresses", kernel_symbols),
    Check("kernel function probes", False, "for probe:NAME", probe_device("kprobe", "CONFIG_KPROBE_EVENTS")),
    Check(
        "user function probes",
        False,
        "for probe:FILE:FUNCTION and sdt:",
        probe_device("uprobe", "CONFIG_UPROBE_EVENTS"),
    ),
    Check("locked memory", False, "for kernels before 5.11", locked_memory),
    Check("rich", False, "for colours in tables", library("rich", f"{PIP_REMEDY} rich")),
)


def examine(check: Check) -> Finding:
    """What a check finds; what it raises is a finding too."""
    try:
        return check.look()
    except (OSError, ImportError) as error:
        what = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return Finding(False, what.strip().splitlines()[0], remedy_of(error))


def remedy_of(error: Exception) -> str:
    """What to do about an error of the kernel, or of an import."""
    if isinstance(error, OSError):
        from ktap.kernel import remedy

        return remedy(error) or "see dmesg"
    return "make run, or pip install what is missing"


def report(failures_only: bool, say: Callable[[str], int]) -> int:
    """Print all findings (or only what is not well) and return the exit status: 0 where tracing works, else 3."""
    from ktap.terminal import table

    found = [(check, examine(check)) for check in CHECKS]
    rows = [
        (check.name, _verdict(check, finding), finding.what, "" if finding.well else _advice(check, finding))
        for check, finding in found
        if not failures_only or (check.needed and not finding.well)
    ]
    works = all(finding.well for check, finding in found if check.needed)
    status = say(table(rows)) if rows else 0
    if not failures_only:
        release = os.uname()
        summary = "tracing works" if works else "tracing does not work; recordings can be replayed"
        status = status or say(f"{release.sysname} {release.release} {release.machine}: {summary}\n")
    return status or (0 if works else 3)


def _verdict(check: Check, finding: Finding) -> str:
    return "yes" if finding.well else "no" if check.needed else "(no)"


def _advice(check: Check, finding: Finding) -> str:
    return f"{finding.remedy} ({check.purpose})"


def _read(path: str) -> Optional[str]:
    with open(path) as file:
        return file.read().strip()

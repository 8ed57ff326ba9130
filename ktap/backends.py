"""How a run reaches the kernel's events: with BPF, or without it, through perf events alone."""

from __future__ import annotations

import importlib.util
import os
from contextlib import suppress
from functools import cache
from typing import Callable, Optional

from ktap import kernel, perf_event
from ktap.options import Options, refuse

AUTO, BPF, PERF = "auto", "bpf", "perf"


@cache
def why_no_bpf() -> Optional[str]:
    """What keeps programs out of the kernel; None where nothing does."""
    try:
        kernel.instruction_set()
    except OSError as error:
        return f"bpf(2): {error.strerror}"
    if importlib.util.find_spec("llvmlite") is None:
        return "llvmlite, which makes the programs, is not installed"
    return None


@cache
def samples_everyone() -> bool:
    """Whether perf events of all processes can be had."""
    with suppress(OSError):
        event = perf_event.Attribute(perf_event.SOFTWARE, perf_event.DUMMY, flags=perf_event.TASK_RECORDS)
        os.close(perf_event.open_event(event, kernel.online_cpus()[0], -1, "perf event"))
        return True
    return False


def chosen(options: Options, say: Callable[[str], None]) -> str:
    """BPF or PERF, as the command line asks, or else as the kernel and the privilege allow. Raises Refusal (status 2)."""
    backend = options.backend
    if backend == AUTO:
        reason = why_no_bpf()
        if reason is None or not samples_everyone():  # who can do neither is told what BPF lacks
            return BPF
        backend = PERF
        say(f"without BPF ({reason}): events come as perf events, handlers run in the VM; slower, same answers")
    if backend == PERF:
        if options.tier == "kernel":
            raise refuse("--tier kernel takes BPF, which --backend perf does without", "leave one of them out")
        if options.buffer == "ring":
            raise refuse("--buffer ring takes BPF, which --backend perf does without", "leave one of them out")
    return backend

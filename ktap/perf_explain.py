"""`ktap explain` of a run without BPF: which perf events it takes, and who decides the filters."""

from __future__ import annotations

import os
from typing import List

from ktap import session
from ktap.explain import NO_PRIVILEGE, heading, row, vm_statements
from ktap.options import Options
from ktap.perf_source import PerfSource
from ktap.perf_streams import Stream, detach_ns
from ktap.sources import machine_source
from vm.diagnostic import Diagnostic, Refusal
from vm.fault import Exit, Fault
from vm.limits import Limits
from vm.program import Program
from vm.run import is_own


def page(options: Options, reason: str) -> str:
    """The whole text; `reason` says why there is no BPF. Raises Refusal."""
    program = session.load(options)
    limits = Limits()._replace(**dict(options.limits))
    quiet = options._replace(output=os.devnull, stamp=False, tier="vm", backend="perf")
    output, machine = session.start(program, limits, quiet)
    notices: List[str] = []
    source = machine_source(machine, quiet, None, notices.append, attaching=False)
    assert isinstance(source, PerfSource)
    try:
        machine.run_main()
        probes = [probe for probe in machine.probes if not is_own(probe)]
        unchecked = ""
        try:
            source.attach(probes)
        except Refusal as refusal:
            if refusal.status != NO_PRIVILEGE:
                raise
            unchecked = refusal.diagnostics[0].message
        lines = ["handlers"]
        for probe in machine.probes:
            lines.append(row("VM", probe.span.line, probe.event if is_own(probe) else heading(probe)))
            lines += vm_statements(program, probe)
        lines += ["  all handlers run in the VM: " + reason]
        if unchecked:
            lines += ["", f"not possible here: {unchecked}"]
        else:
            lines += ["", *events_part(source.streams), "", *notices]
        return "\n".join([*lines, "needs root, or CAP_PERFMON and a readable tracefs"]) + "\n"
    except Fault as fault:
        raise _refused(program, fault) from None
    except Exit:
        return "the main chunk ends the script: exit()\n"
    finally:
        source.close()
        output.close()


def events_part(streams: List[Stream]) -> List[str]:
    """What is opened, with the kernel's filters."""
    lines = ["events"]
    for stream in streams:
        lines.append(f"  {stream.label}: {stream.how}")
        if stream.filter:
            lines.append(f"      the kernel passes on: {shortened(stream.filter)}")
    slow_ns = detach_ns(streams)
    if slow_ns:
        lines.append(f"  letting go of these events takes about {slow_ns / 1e9:.1f} s")
    return lines


MOST_SHOWN = 200


def shortened(text: str) -> str:
    """A filter of many system calls is long."""
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]} ..."


def _refused(program: Program, fault: Fault) -> Refusal:
    span = fault.frames[0].span if fault.frames else None
    return Refusal([Diagnostic(program.source_name, span, fault.message, fault.hint)], program.source)

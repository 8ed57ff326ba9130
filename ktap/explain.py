"""`ktap explain`: where each handler of a script runs and why, and what that takes of the kernel.

The main chunk runs (its output is dropped) and everything is done that a run does before its programs
are attached; so what is told is what a run would do, on this kernel, with these options.
"""

from __future__ import annotations

import os
from typing import Dict, Iterator, List, Mapping, Optional, Sequence, Set, Tuple

from compiler.assembly import disassemble
from compiler.bpf import Code, compile_program
from compiler.lower.flat import FlatHandler
from compiler.lower.layouts import ARRAY, HASH, PERCPU_ARRAY, PERCPU_HASH, MapSpec
from compiler.lower.partition import AGGREGATION, CONSTANT, KEYED, SUM, Reason
from compiler.lower.values import Site
from ktap import attach, backends, kernel, session
from ktap.assemble import assemble
from ktap.calls import CALL_CONTEXTS, TYPED_CONTEXTS
from ktap.capture import (
    COUNTER,
    EVERY_ENTER,
    EVERY_EXIT,
    PROFILE,
    RAW,
    RETURN,
    SYSCALL_ENTER,
    SYSCALL_EXIT,
    TRACEPOINT,
    USER_CONTEXTS,
    Case,
    InPlace,
)
from ktap.captured import KERNEL_STACK, MEMBER, READ, RECORD, USER_STACK
from ktap.groups import layers
from ktap.layout import Layout
from ktap.live import LiveSource, detach_s
from ktap.lowered import Lowering
from ktap.map_sizes import locked_bytes
from ktap.objects import Objects
from ktap.options import Options
from ktap.plan import Captured, raw_context
from ktap.settings import buffer_bytes, power_of_two
from ktap.sources import live_source
from vm.diagnostic import Diagnostic, Refusal
from vm.event import Probe
from vm.fault import Exit, Fault
from vm.limits import Limits
from vm.machine import Machine
from vm.named_tuple import NamedTuple
from vm.program import Program
from vm.run import is_own

HOMES = {
    SUM: "added to on each processor, put together when a tick or trace_end looks",
    AGGREGATION: "sampled on each processor, put together when a tick or trace_end looks",
    KEYED: "entries of the running thread, processor or task",
    CONSTANT: "as the main chunk left it",
}
KINDS = {HASH: "hash", PERCPU_HASH: "hash a CPU", ARRAY: "array", PERCPU_ARRAY: "array a CPU"}
HANGS_ON = {
    SYSCALL_ENTER: "raw tracepoint sys_enter",
    SYSCALL_EXIT: "raw tracepoint sys_exit",
    EVERY_ENTER: "raw tracepoint sys_enter",
    EVERY_EXIT: "raw tracepoint sys_exit",
    RETURN: "raw tracepoint sys_exit, for memory that could not be read at the entry",
    RAW: "raw tracepoint",
    TRACEPOINT: "perf event of the tracepoint, since its fields are read",
    PROFILE: "a timer on every processor",
    COUNTER: "a perf event on every processor",
    **dict.fromkeys(CALL_CONTEXTS, "function of the kernel, by its registers"),
    **dict.fromkeys(TYPED_CONTEXTS, "function of the kernel, by its types"),
    **dict.fromkeys(USER_CONTEXTS, "function or marker of a program"),
}
WAYS = {
    "fentry": "fentry, a call at the function's entry",
    "fexit": "fexit, a call at the function's entry and one when it is done",
    "kprobe multi": "kprobe multi, one link for many functions",
    "kprobe": "kprobe, a perf event",
    "uprobe multi": "uprobe multi, one link for many places",
    "uprobe": "uprobe, a perf event",
}
"""How functions are reached, by what backends are called."""
SLOTS = {
    RECORD: "the event's fields",
    "comm": "execname",
    "pid_tgid": "pid and tid",
    "uid_gid": "uid and gid",
    KERNEL_STACK: "the kernel's stack",
    USER_STACK: "the process's stack",
}
"""What a VM handler is given, by the slot of a record."""
NO_PRIVILEGE = 3
"""Status of a refusal for want of privilege or kernel support."""


class Loaded(NamedTuple):
    """A program: what it is for, what it was made of, and whether the kernel has taken it."""

    label: str
    context: str
    ir: str
    code: Code
    accepted: bool


class Survey(NamedTuple):
    """What there is to tell."""

    program: Program
    probes: Sequence[Probe]
    """Those of events, in the order they were set."""
    own: Sequence[Probe]
    """Ticks, trace_begin and trace_end."""
    lowered: Mapping[int, FlatHandler]
    """Handlers in the kernel, by their place in `probes`."""
    reasons: Mapping[int, Reason]
    sites: Sequence[Site]
    """Places of handlers in the kernel that send something."""
    events: Sequence[Captured]
    programs: Sequence[Loaded]
    maps: Sequence[Tuple[MapSpec, str]]
    """Maps with what they are for."""
    cpus: int
    buffer: str
    """What programs send through."""
    notices: Sequence[str]
    backends: Mapping[str, str]
    """How functions are reached, by event."""
    unchecked: Optional[str] = None
    """Why the kernel was not asked about the programs."""


# -- finding out ------------------------------------------------------------------------------


def survey(machine: Machine, source: LiveSource, cpus: int, buffer: str, notices: Sequence[str]) -> Survey:
    """Do what a run does before it attaches; the main chunk has run. Raises Refusal for a script that cannot run.

    Where the kernel may not be asked, programs are made all the same, and not loaded.
    """
    lowering = source.lowering
    assert lowering is not None
    probes = [probe for probe in machine.probes if not is_own(probe)]
    own = [probe for probe in machine.probes if is_own(probe)]
    unchecked = None
    programs: List[Loaded] = []
    if probes:
        try:
            source.attach(probes)
        except Refusal as refusal:
            if refusal.status != NO_PRIVILEGE:
                raise
            unchecked = refusal.diagnostics[0].message
        if unchecked is not None and source.events:
            if lowering.plan is not None and lowering.plan.kernel and lowering.tables is None:
                lowering.prepare(2 * len(source.events), Objects())
            programs = list(made_on_paper(source, lowering))
    for loaded in source.programs:
        programs.append(Loaded(loaded.label, loaded.made.spec.context, loaded.made.ir, loaded.made.code, True))
    lowered = lowering.plan.kernel if lowering.plan is not None else {}
    maps = list(table_maps(lowering)) if lowered else []
    sites = list(lowering.sites)
    return Survey(
        machine.program,
        probes,
        own,
        lowered,
        lowering.reasons(),
        sites,
        source.events,
        programs,
        maps,
        cpus,
        buffer,
        notices,
        dict(source.backends),
        unchecked,
    )


def made_on_paper(source: LiveSource, lowering: Lowering) -> Iterator[Loaded]:
    """The programs that would be loaded, without asking the kernel anything."""
    machine, release = os.uname().machine, os.uname().release
    cpu = "v4" if tuple(int(part) for part in release.split("-")[0].split(".")[:2]) >= (6, 6) else "v3"
    events = source.events
    options = attach.Options(
        source.bits, 0, None, None, machine, lambda label: 0, lambda: None, lowering, len(events), False
    )
    for context, label, cases in groups(events, machine):
        made = assemble(context, cases, options, "ring", InPlace(cpu == "v4"), lambda ir: compile_program(ir, cpu))
        yield Loaded(label, context, made.ir, made.code, False)


def groups(events: Sequence[Captured], machine: str) -> Iterator[Tuple[str, str, Tuple[Case, ...]]]:
    """The context, the label and the cases of every program."""
    numbered = list(enumerate(events))
    for context, label in ((SYSCALL_ENTER, "sys_enter"), (SYSCALL_EXIT, "sys_exit")):
        for layer in layers([pair for pair in numbered if pair[1].wanted.context == context]):
            cases: List[Case] = []
            cases += (event.case for _, event in layer if event.case not in cases)
            if any(case.returns for case in cases):
                yield RETURN, "sys_exit", tuple(cases)
            yield context, label, tuple(cases)
    for event in events:
        context = context_of(event, machine)
        if context not in (SYSCALL_ENTER, SYSCALL_EXIT):
            yield context, event.wanted.name, (event.case,)


def context_of(event: Captured, machine: str) -> str:
    """What the program of an event is attached to."""
    context = event.wanted.context
    return (raw_context(event, machine) or context) if context == TRACEPOINT else context


def table_maps(lowering: Lowering) -> Iterator[Tuple[MapSpec, str]]:
    """The maps of tables and variables, with what they are for."""
    assert lowering.plan is not None and lowering.tables is not None
    tables = lowering.tables
    purposes: Dict[str, str] = {}
    for identity, home in lowering.plan.tables.items():
        purposes[tables.names[identity]] = f"{home.name}: {HOMES[home.home]}"
    for variable, (reference, _) in tables.variable_places.items():
        before = f"{purposes[reference]}, " if reference in purposes else ""
        purposes[reference] = before + variable.name
    for name, spec in tables.specs.items():
        if name in purposes:
            yield spec, purposes[name]


# -- telling ----------------------------------------------------------------------------------


def page(found: Survey, machine: str) -> str:
    """The whole text."""
    parts = [handlers_part(found), events_part(found, machine), programs_part(found), maps_part(found)]
    parts.append([*found.notices, *needs_part(found)])
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def handlers_part(found: Survey) -> List[str]:
    """Each handler and its statements: which tier, and for the VM why."""
    if not found.probes and not found.own:
        return ["no probes: the script runs in the VM, and ends"]
    lines = ["handlers"]
    for index, probe in enumerate(found.probes):
        flat = found.lowered.get(index)
        tier = "kernel" if flat is not None else "VM" if found.events else "not known"
        lines.append(row(tier, probe.span.line, heading(probe)))
        if flat is not None:
            sent = sent_lines(found, flat.functions)
            for line in statement_lines(found.program, flat.functions, probe.span.line):
                place = "kernel, then VM" if line in sent else "kernel"
                lines.append(row(place, line, "  " + source_line(found.program, line)))
        elif found.events:
            lines += in_the_vm(found, index, probe)
    for probe in found.own:
        lines.append(row("VM", probe.span.line, probe.event))
        lines += vm_statements(found.program, probe)
    lines += footnotes(found)
    return lines


def footnotes(found: Survey) -> List[str]:
    """What the words of the table mean, where they are used."""
    lines = []
    if any(not site.detail for site in found.sites):
        lines.append("  kernel, then VM: its values are read in the kernel and shown by the VM")
    if any(probe.event.startswith("tick-") for probe in found.own) and found.lowered:
        lines.append("  a tick runs in the VM, with all that was counted up to then")
    return lines


def row(tier: str, line: int, text: str) -> str:
    """A line of the table of handlers."""
    return f"  {tier:<16}{line:>4}  {text}".rstrip()


def heading(probe: Probe) -> str:
    """A probe as a script has it."""
    return f"trace {probe.event}" + (f" /{probe.filter}/" if probe.filter else "")


def in_the_vm(found: Survey, index: int, probe: Probe) -> List[str]:
    """Why a handler stays in the VM, what would change it, and what it takes of the kernel all the same."""
    lines = vm_statements(found.program, probe)
    reason = found.reasons.get(index)
    margin = " " * 24
    if reason is not None:
        where = f"line {reason.span.line}: " if reason.span is not None else ""
        lines.append(f"{margin}why: {where}it {reason.text}")
        if reason.remedy:
            lines.append(f"{margin}what would change it: {reason.remedy}")
    if probe.filter:
        lines.append(f"{margin}its filter is decided in the kernel")
    wanted = [event for event in found.events if index in event.wanted.probes]
    if wanted:
        layout = wanted[0].case.layout
        size = f"up to {layout.most_bytes}" if layout.varies else str(layout.fixed_bytes)
        lines.append(f"{margin}an event is sent to it in {size} bytes: {', '.join(carried(layout))}")
    return lines


def vm_statements(program: Program, probe: Probe) -> List[str]:
    """The statements of a handler in the VM."""
    lines = statement_lines(program, (probe.function,), probe.span.line)
    return [row("VM", line, "  " + source_line(program, line)) for line in lines]


def carried(layout: Layout) -> List[str]:
    """What a record has."""
    names = ["time and processor"]
    for slot in layout.slots:
        kind = next((text for prefix, text in ((READ, "memory"), (MEMBER, "")) if slot.name.startswith(prefix)), None)
        text = SLOTS.get(slot.name, slot.name) if kind is None else kind or slot.name[len(MEMBER) :]
        if text not in names:
            names.append(text)
    return names


def statement_lines(program: Program, functions: Sequence[int], heading: int) -> List[int]:
    """The lines that have code of functions, but for that of the probe."""
    found: Set[int] = set()
    for number in functions:
        function = program.functions[number]
        found.update(span.line for span in function.spans[:-1])  # the last one returns, at what follows
    return sorted(line for line in found if line != heading)


def sent_lines(found: Survey, functions: Sequence[int]) -> Set[int]:
    """The lines that send what the VM shows."""
    return {
        call.span.line
        for site in found.sites
        if not site.detail
        for call in site.frames[:1]
        if call.function in functions
    }


def source_line(program: Program, line: int) -> str:
    """A line of the script; empty where the text was stripped."""
    lines = (program.source or "").split("\n")
    return lines[line - 1].strip() if line <= len(lines) else ""


def events_part(found: Survey, machine: str) -> List[str]:
    """What each probe hangs on."""
    if not found.events:
        return []
    lines = ["events"]
    slow = 0
    for index, probe in enumerate(found.probes):
        wanted = [
            e for e in found.events if index in e.wanted.probes or any(b.handler == index for b in e.wanted.bodies)
        ]
        ways: Dict[Tuple[str, str], List[Captured]] = {}
        for event in wanted:
            backend = found.backends.get(event.wanted.label, "")
            ways.setdefault((context_of(event, machine), WAYS.get(backend, backend)), []).append(event)
        for (context, way), events in ways.items():
            few = events[0].wanted.label if len(events) == 1 else f"{len(events)} events of {probe.event}"
            lines.append(f"  {few}: {way or HANGS_ON.get(context, context)}")
            slow += len(events) if context == TRACEPOINT or way == WAYS["kprobe"] else 0
    lines = list(dict.fromkeys(lines))
    if slow:
        lines.append(
            f"  letting go of {plural(slow, 'perf event')} takes about {detach_text(slow)}; of the rest, nothing"
        )
    else:
        lines.append("  letting go takes no time")
    return lines


def detach_text(events: int) -> str:
    """How long the kernel takes to let go of perf events."""
    return f"{events * attach.DETACH_NS // 1_000_000} ms" if events < 10 else f"{detach_s(events)} s"


def programs_part(found: Survey) -> List[str]:
    """Sizes of programs, and what the kernel says to them."""
    if not found.programs:
        return []
    if found.unchecked is not None:
        verdict = f"not checked by the kernel ({found.unchecked})"
    else:
        verdict = "the kernel's verifier takes them all"
    lines = ["programs"]
    shown: Dict[Tuple[str, int], List[str]] = {}
    for program in found.programs:
        key = (HANGS_ON.get(program.context, program.context), len(program.code.instructions) // 8)
        shown.setdefault(key, []).append(program.label)
    for (place, size), labels in shown.items():
        many = "" if len(labels) == 1 else f" and {len(labels) - 1} more like it"
        lines.append(f"  {labels[0]}{many}: {size} instructions ({place})")
    if found.buffer and any(r.name == "buffer" for program in found.programs for r in program.code.references):
        lines.append(f"  what they send goes through {found.buffer}")
    return [*lines, f"  {verdict}"]


def maps_part(found: Survey) -> List[str]:
    """Maps of tables and variables, with what they take."""
    if not found.maps:
        return []
    lines = ["maps"]
    for spec, purpose in found.maps:
        twice = ", twice" if spec.swapped else ""
        lines.append(
            f"  {spec.name}: {KINDS[spec.kind]}, {spec.entries} x ({spec.key_bytes} + {spec.value_bytes} bytes){twice},"
            f" {size_text(locked_bytes(spec, found.cpus))}"
        )
        lines.append(f"      {purpose}")
    total = sum(locked_bytes(spec, found.cpus) for spec, _ in found.maps)
    return [*lines, f"  {size_text(total)} of locked memory in all"]


def needs_part(found: Survey) -> List[str]:
    """What it takes to run."""
    if not found.probes:
        return ["needs no privilege"]
    lines = ["needs root, or CAP_BPF and CAP_PERFMON and a readable tracefs"]
    if found.unchecked is not None and not found.events:
        lines.append(f"where handlers run was not found out: {found.unchecked}")
    return lines


def size_text(size_bytes: int) -> str:
    """A size in a unit that suits it."""
    for unit, shift in (("MiB", 20), ("KiB", 10)):
        if size_bytes >= 1 << shift:
            return f"{size_bytes / (1 << shift):.1f} {unit}"
    return f"{size_bytes} bytes"


def plural(count: int, what: str) -> str:
    """`1 perf event`, `3 perf events`."""
    return f"{count} {what}{'' if count == 1 else 's'}"


# -- the actions ------------------------------------------------------------------------------


def explain(options: Options) -> str:
    """`ktap explain`. Raises Refusal."""
    reasons: List[str] = []
    if backends.chosen(options._replace(tier="auto"), reasons.append) == backends.PERF:
        from ktap import perf_explain

        return perf_explain.page(options, reasons[0] if reasons else "--backend perf")
    return page(surveyed(options), os.uname().machine)


def dump(options: Options) -> str:
    """`ktap dump --stage llvm|bpf|maps`: what handlers and captures were made of. Raises Refusal."""
    found = surveyed(options)
    if options.stage == "maps":
        return "".join(f"{line}\n" for line in maps_part(found)) or "no maps\n"
    parts = []
    for made in found.programs:
        text = made.ir if options.stage == "llvm" else disassemble(made.code)
        parts.append(f"; {made.label}: {HANGS_ON.get(made.context, made.context)}\n{text}")
    return "\n".join(parts) or "; no programs\n"


def buffer_text(options: Options) -> str:
    """The buffer that records go through."""
    cpus = len(kernel.online_cpus())
    if options.buffer == "perf":
        size_bytes = power_of_two(options.buffer_bytes or buffer_bytes(cpus))
        return f"a perf buffer of {size_text(size_bytes)} for each of {plural(cpus, 'processor')}"
    return f"one ring of {size_text(power_of_two(options.buffer_bytes or buffer_bytes(1)))}"


def surveyed(options: Options) -> Survey:
    """Run the main chunk of a script and look what a run would do next. Raises Refusal."""
    program = session.load(options)
    limits = Limits()._replace(**dict(options.limits))
    quiet = options._replace(output=os.devnull, stamp=False, tier="auto")
    output, machine = session.start(program, limits, quiet)
    notices: List[str] = []
    source = live_source(machine, quiet, None, notices.append, attaching=False)
    try:
        machine.run_main()
        return survey(machine, source, kernel.possible_cpus(), buffer_text(options), notices)
    except Fault as fault:
        span = fault.frames[0].span if fault.frames else None
        raise Refusal([Diagnostic(program.source_name, span, fault.message, fault.hint)], program.source) from None
    except Exit:
        return Survey(program, (), (), {}, {}, (), (), (), (), 0, "", ["the main chunk ends the script: exit()"], {})
    finally:
        source.close()
        output.close()

"""Where the events of a run come from: this machine, or a recording. Puts the parts of a source together."""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING, Callable, Optional, Sequence, Tuple, Union, cast

from ktap import early, settings, tracefs
from ktap.btf import kernel_types
from ktap.demand import Demand
from ktap.event_format import EventFormat
from ktap.fetched import GROUP, format_source_of
from ktap.functions import traced_functions
from ktap.kernel import online_cpus
from ktap.objects import Keep
from ktap.options import Options, refuse
from ktap.prelude import is_quick
from ktap.resolve import Kernel
from vm.machine import Machine
from vm.values import Table

if TYPE_CHECKING:
    from ktap.address_spaces import AddressSpaces
    from ktap.live import LiveSource
    from ktap.lowered import Lowering
    from ktap.perf_source import PerfSource
    from ktap.pointer_format import KernelNames
    from ktap.print_format import Formatter
    from ktap.recorder import RecordingSource
    from ktap.replay import ReplaySource
    from vm.declaration import Declarations
    from vm.library.builtin import Machine as LibraryMachine


def check_scope(options: Options) -> None:
    """Refuse a process or a processor that is not there: nothing would ever be traced. Raises Refusal (status 2)."""
    if options.pid is not None and not os.path.exists(f"/proc/{options.pid}"):
        raise refuse(f"-p {options.pid}: there is no such process")
    if options.cpu is not None and options.cpu not in online_cpus():
        online = ", ".join(map(str, online_cpus()))
        raise refuse(f"-C {options.cpu}: there is no such processor", f"online are {online}")


def live_source(
    machine: Machine,
    options: Options,
    child: Optional[int],
    say: Callable[[str], None],
    also: Optional[Demand] = None,
    attaching: bool = True,
) -> LiveSource:
    """This machine, by BPF. `child` is the process of the command that is traced, `also` what a recording wants captured.

    `attaching`: see settings.Options. Raises Refusal.
    """
    from ktap.live import LiveSource

    parts = _parts(machine, options, child, also, attaching)
    lowering = None if options.record is not None else lowering_of(machine, options)
    return LiveSource(machine.program, *parts, say, lowering, keeper(machine, options, child))


def machine_source(
    machine: Machine, options: Options, child: Optional[int], say: Callable[[str], None], attaching: bool = True
) -> Union[LiveSource, PerfSource]:
    """This machine, by BPF or without, as asked for or as there is; arguments as of live_source. Raises Refusal."""
    from ktap import backends

    check_scope(options)
    if backends.chosen(options, say) == backends.BPF:
        return live_source(machine, options, child, say, attaching=attaching)
    return perf_source(machine, options, child, say, attaching=attaching)


def perf_source(
    machine: Machine,
    options: Options,
    child: Optional[int],
    say: Callable[[str], None],
    also: Optional[Demand] = None,
    attaching: bool = True,
) -> PerfSource:
    """This machine, without BPF; arguments as of live_source. Raises Refusal."""
    from ktap.perf_source import PerfSource

    chosen, helpers, where = _parts(machine, options, child, also, attaching)
    return PerfSource(machine.program, chosen, helpers, where._replace(functions=traced_functions), say)


def _parts(
    machine: Machine,
    options: Options,
    child: Optional[int],
    also: Optional[Demand] = None,
    attaching: bool = True,
) -> Tuple[settings.Options, settings.Helpers, Kernel]:
    """What both kinds of live sources are made of."""
    check_scope(options)
    pids = tuple(pid for pid in (options.pid, child) if pid is not None)
    chosen = settings.Options(
        options.buffer,
        options.buffer_bytes,
        pids,
        options.cpu,
        machine.limits.event_string_bytes,
        also or Demand(),
        attaching,
    )

    def format_text(event: EventFormat) -> Formatter:
        from ktap.print_format import event_text

        return event_text(event, live_names(), os.uname().release).show

    host = machine.host
    helpers = settings.Helpers(
        format_text,
        tables_of(machine),
        host.kernel_address,
        host.kernel_symbol,
        types_of(machine),
        spaces_of(machine),
    )
    kernel = Kernel(
        tracefs.find,
        os.uname().machine,
        kernel_types,
        unsafe=options.unsafe,
        most_probes=machine.limits.probes,
    )
    return chosen, helpers, kernel


def keeper(machine: Machine, options: Options, child: Optional[int]) -> Optional[Keep]:
    """What keeps the kernel objects of a run for the next one to begin with; None for a run that takes its own way.

    Events may count before the main chunk runs only where nobody could tell the difference; and what is told of a
    process or comes through a pipe is another thing each time.
    """
    own = options.action == "run" and options.record is None and not options.dry_run
    script, source = options.script or "", machine.program.source
    if not own or source is None or script == "-" or script.endswith(".kpc"):
        return None
    if script and not os.path.isfile(script):
        return None
    if options.pid is not None or child is not None or not is_quick(machine.program):
        return None
    if spaces_of(machine) is not None:  # processes are watched from before their first event
        return None
    return lambda steps: early.keep(script, source.encode("utf-8", "surrogateescape"), steps)


NAMING = frozenset({b"ustack", b"usym"})
"""Builtins that give addresses of processes, which print as symbols."""


def spaces_of(machine: Machine) -> Optional[AddressSpaces]:
    """What the machine's host knows of the memory of processes; None where the script names none of their code."""
    if not any(constant in NAMING for constant in machine.program.constants if isinstance(constant, bytes)):
        return None
    from ktap.live_host import LiveHost
    from ktap.recorder import RecordingHost

    host = machine.host.live if isinstance(machine.host, RecordingHost) else machine.host
    return host.spaces if isinstance(host, LiveHost) else None


def recording_source(
    machine: Machine, options: Options, child: Optional[int], say: Callable[[str], None]
) -> RecordingSource:
    """This machine, what happens being kept in a file. Raises Refusal."""
    from ktap import backends
    from ktap.recorder import RecordingHost, RecordingSource
    from ktap.recording import everything, sampled

    host = machine.host
    assert isinstance(host, RecordingHost)
    source: Union[LiveSource, PerfSource]
    if backends.chosen(options, say) == backends.BPF:
        source = live_source(machine, options, child, say, everything(kernel_types() is not None))
    else:
        source = perf_source(machine, options, child, say, sampled())

    def format_source(event: EventFormat) -> str:
        if event.group == GROUP:
            return format_source_of(event)
        return tracefs.find().format_source(tracefs.TracepointName(event.group, event.name))

    return RecordingSource(source, host, live_names(), format_source)


def replay_source(machine: Machine, options: Options, say: Callable[[str], None]) -> ReplaySource:
    """A recording. Raises Refusal."""
    from ktap.replay import ReplayHost, ReplaySource
    from ktap.replay_probes import ReplayProbes

    host = machine.host
    assert isinstance(host, ReplayHost)
    string_bytes = machine.limits.event_string_bytes
    probes = ReplayProbes(machine.program, host.recording, string_bytes, types_of(machine), say)
    return ReplaySource(host.recording, host, probes, tables_of(machine), options.cpu, say)


@cache
def live_names() -> KernelNames:
    """What the text of live events asks of the kernel."""
    from ktap.symbols import LiveNames

    return LiveNames(lambda: tracefs.find().root)


def tables_of(machine: Machine) -> Callable[[Sequence[object]], object]:
    """Makes a table of the script's of the integers or strings of an array."""

    def table(values: Sequence[object]) -> Table:
        made = Table(machine.account)
        for place, value in enumerate(values, 1):
            made.put(place, value)
        return made

    return table


def types_of(machine: Machine) -> Callable[[], Declarations]:
    """The C types the script knows, its own and the kernel's."""

    def types() -> Declarations:
        from vm.library.foreign import declarations

        return declarations(cast("LibraryMachine", machine))

    return types


def lowering_of(machine: Machine, options: Options) -> Optional[Lowering]:
    """What puts handlers into the kernel, None where all stay in the VM."""
    if options.tier == "vm":
        return None
    from ktap.lowered import Lowering

    return Lowering(machine, options.tier == "kernel")

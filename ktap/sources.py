"""Where the events of a run come from: this machine, or a recording. Puts the parts of a source together."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Callable, Optional, Sequence, cast

from ktap import live, tracefs
from ktap.btf import kernel_types
from ktap.event_format import EventFormat
from ktap.options import Options
from ktap.print_format import Formatter, event_text
from ktap.resolve import Kernel
from ktap.symbols import LiveNames
from vm.library.foreign import declarations
from vm.machine import Machine
from vm.values import Table

if TYPE_CHECKING:
    from ktap.lowered import Lowering
    from vm.declaration import Declarations
    from vm.library.builtin import Machine as LibraryMachine


def live_source(
    machine: Machine, options: Options, child: Optional[int], say: Callable[[str], None]
) -> live.LiveSource:
    """This machine. `child` is the process of the command that is traced. Raises Refusal."""
    pids = tuple(pid for pid in (options.pid, child) if pid is not None)
    settings = live.Options(options.buffer, options.buffer_bytes, pids, options.cpu, machine.limits.event_string_bytes)
    names = LiveNames(lambda: tracefs.find().root)

    def format_text(event: EventFormat) -> Formatter:
        return event_text(event, names, os.uname().release).show

    def table(values: Sequence[int]) -> Table:
        made = Table(machine.account)
        for place, value in enumerate(values, 1):
            made.put(place, value)
        return made

    def types() -> Declarations:
        return declarations(cast("LibraryMachine", machine))

    helpers = live.Helpers(format_text, table, machine.host.kernel_address, machine.host.kernel_symbol, types)
    kernel = Kernel(tracefs.find, os.uname().machine, kernel_types)
    return live.LiveSource(machine.program, settings, helpers, kernel, say, lowering_of(machine, options))


def lowering_of(machine: Machine, options: Options) -> Optional[Lowering]:
    """What puts handlers into the kernel, None where all stay in the VM."""
    if options.tier == "vm":
        return None
    from ktap.lowered import Lowering

    return Lowering(machine, options.tier == "kernel")

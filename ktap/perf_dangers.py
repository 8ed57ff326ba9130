"""What the kernel does wrong with long strings at probes in code, so that nobody may take them there unasked.

At a place in a program it fetches into one page, and until that was mended (struct uprobe_cpu_buffer has had a `dsize`
since) it wrote on behind the page (kernel/trace/trace_uprobe.c, store_trace_args). Mended, it cuts strings off and
warns, once; of functions of the kernel it drops the event and warns. Where a warning is the end of the machine
(sysctl kernel.panic_on_warn) a script would end it.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Callable, Optional

from ktap.btf import Btf
from ktap.capture import USER_CONTEXTS
from ktap.perf_counts import FUNCTION_BYTES
from ktap.perf_fetch import strings_bytes
from ktap.perf_probes import fetches_of
from ktap.plan import Captured
from vm.c_types import Structure

PANIC_ON_WARN = "/proc/sys/kernel/panic_on_warn"


def danger_of(event: Captured, machine: str, types: Callable[[], Optional[Btf]]) -> Optional[str]:
    """What could happen to the machine, None where nothing could; the event has no fetch arguments that are refused."""
    in_program = event.wanted.context in USER_CONTEXTS
    size = strings_bytes(fetches_of(event, machine).arguments)
    if size == 0 or (not in_program and size < FUNCTION_BYTES):
        return None
    if in_program and not _stays_in_page(types()):
        return "which this kernel may write behind the page that it has for them"
    if _panics():
        return "and this machine is to panic where the kernel warns, as it does of long ones (kernel.panic_on_warn)"
    return None


def _stays_in_page(types: Optional[Btf]) -> bool:
    found = types.find("struct uprobe_cpu_buffer") if types is not None else None
    return isinstance(found, Structure) and any(member.name == "dsize" for member in found.members)


def _panics() -> bool:
    with suppress(OSError), open(PANIC_ON_WARN) as file:
        return file.read().strip() != "0"
    return False

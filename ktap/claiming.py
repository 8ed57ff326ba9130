"""One run at a time on each processor, for programs that may be preempted.

What programs put together in maps by processor is another run's when a thread that is preempted in one (programs
of probes in processes can be, on kernels built for it) gives way to a thread that runs the same. So a run claims
its processor first, and one that finds it claimed is counted and does nothing. Other programs run with
preemption off, or are kept apart by the kernel, which counts them itself.
"""

from __future__ import annotations

import struct
import time
from typing import TYPE_CHECKING, Tuple

from ktap import kernel

if TYPE_CHECKING:
    from compiler.ir import Writer

CLAIMS = "claims"
"""The map: by processor, whether it is claimed, and how many runs found it so."""
CLAIM_BYTES = 16
PATIENCE_S = 1.0
MISSED_OFFSET = 8
RELEASE = """\
  %claim = load ptr, ptr {room}
  %unclaimed = icmp eq ptr %claim, null
  br i1 %unclaimed, label %released, label %release
release:
  store i64 0, ptr %claim
  br label %released
released:
"""
"""What every path of a program comes by in the end."""


def prepare(w: Writer) -> None:
    """Begin a program that may claim its processor."""
    room = w.local(8, "claim")
    w.do(f"store ptr null, ptr {room}")
    w.leaving = RELEASE.format(room=room)


def claim(w: Writer, cpu: str) -> None:
    """Claim the processor, or count and go to `out`."""
    key, mine, taken = w.local(4, "key"), w.fresh("mine"), w.fresh("taken")
    w.store(4, cpu, key)
    found = w.lookup(CLAIMS, key)
    before = w.value(f"atomicrmw xchg ptr {found}, i64 1 seq_cst")
    w.branch(w.value(f"icmp eq i64 {before}, 0"), mine, taken)
    w.label(taken)
    w.value(f"atomicrmw add ptr {w.at(found, MISSED_OFFSET)}, i64 1 seq_cst")
    w.goto("out")
    w.label(mine)
    w.do(f"store ptr {found}, ptr {w.local(8, 'claim')}")


def make() -> int:
    """The map. Raises OSError."""
    return kernel.create_map(kernel.ARRAY, "ktap_claims", 4, CLAIM_BYTES, kernel.possible_cpus())


def missed(claims: int) -> int:
    """How many runs found their processor claimed."""
    return sum(_words(claims, cpu)[1] for cpu in kernel.online_cpus())


def wait(claims: int) -> None:
    """Return when every processor was seen unclaimed, or PATIENCE_S later: a run takes microseconds, if it may run."""
    until = time.monotonic() + PATIENCE_S
    for cpu in kernel.online_cpus():
        while _words(claims, cpu)[0] and time.monotonic() < until:
            time.sleep(0.0001)


def _words(claims: int, cpu: int) -> Tuple[int, int]:
    found = kernel.lookup(claims, struct.pack("=I", cpu), CLAIM_BYTES)
    claimed, count = struct.unpack("=QQ", found or bytes(CLAIM_BYTES))
    return claimed, count

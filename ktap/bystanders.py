"""Events that tell of others than the running task: those of the scheduler, of interrupts, of what they bring.

What ktap itself does is left out of events (see ktap.live). But an event of an interrupt has nothing to do with
the task that happened to run, and `sched:sched_switch` from ktap to another task is where that one begins to run:
without these, times and counts of everybody else would be wrong.
"""

from __future__ import annotations

from typing import FrozenSet, Tuple

GROUPS: FrozenSet[str] = frozenset(
    (
        *("sched", "signal", "ipi", "csd", "workqueue", "rcu", "power", "thermal"),
        *("irq", "irq_vectors", "nmi", "mce", "ras", "timer", "timer_migration", "alarmtimer", "watchdog"),
        *("net", "napi", "skb", "tcp", "udp", "icmp", "qdisc", "neigh", "fib", "fib6", "xdp"),
        *("block", "scsi", "nvme", "libata"),
    )
)
"""Of tracepoints."""
RAW_NAMES: Tuple[str, ...] = (
    *("sched_", "pelt_", "signal_", "ipi_", "workqueue_", "rcu_", "cpu_"),
    *("irq_", "softirq_", "tasklet_", "hrtimer_", "timer_"),
    *("net_", "netif_", "napi_", "kfree_skb", "consume_skb", "tcp_", "udp_", "block_"),
)
"""What names of raw tracepoints of the same kind begin with."""


def tells_of_others(event: str) -> bool:
    """Whether an event (`group:name`, `raw:name`) may be about another task than the one that runs."""
    group, _, name = event.partition(":")
    return name.startswith(RAW_NAMES) if group == "raw" else group in GROUPS

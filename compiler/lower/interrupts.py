"""Facts about events that atomicity rests on: which can fire in the middle of a handler of which other.

A program never runs in the middle of itself (the kernel counts what it leaves out), and no other thread
runs on its processor before it has ended; but an interrupt can come, and events fire in it.
"""

from __future__ import annotations

from typing import FrozenSet, Iterable, Tuple

SERIALIZED_BY_RUN_QUEUE: FrozenSet[Tuple[str, str]] = frozenset(
    {
        ("sched:sched_switch", "prev_pid"),
        ("sched:sched_switch", "next_pid"),
        ("sched:sched_wakeup", "pid"),
        ("sched:sched_wakeup_new", "pid"),
        ("sched:sched_migrate_task", "pid"),
    }
)
"""Fields that name a task whose run-queue lock is held while the event fires (kernel/sched/core.c: ttwu_do_wakeup,
wake_up_new_task, set_task_cpu and __schedule): two of these events about one task never run at the same time. Idle
tasks all have the number 0, so what is kept under it is of any of them, as it is in order of time."""

GROUPS_OF_TASKS: FrozenSet[str] = frozenset({"syscalls", "raw_syscalls", "task"})
"""Groups whose events fire in the context of the running task, outside of interrupts."""

EVENTS_OF_TASKS: FrozenSet[str] = frozenset(
    {"sched:sched_switch", "sched:sched_process_fork", "sched:sched_process_exec", "sched:sched_process_exit"}
)
"""Others that do."""

WITHOUT_INTERRUPTS: FrozenSet[str] = frozenset(
    {
        "sched:sched_switch",
        "sched:sched_wakeup",
        "sched:sched_wakeup_new",
        "sched:sched_waking",
        "sched:sched_migrate_task",
        "sched:sched_stat_runtime",
        "sched:sched_stat_wait",
        "sched:sched_stat_sleep",
        "sched:sched_stat_blocked",
        "sched:sched_stat_iowait",
    }
)
"""Events that fire with interrupts off (under a run-queue lock or a task's pi_lock)."""

SINGLE: Tuple[str, ...] = ("perf:", "profile-", "sdt:")
"""What events begin with that never come several at once while interrupts are off (nor do those of a user function)."""

EVENTS_OF_THREAD: FrozenSet[str] = frozenset({"tid", "cpu"})
"""Event variables that name the running thread or its processor."""


def of_task(event: str) -> bool:
    """Whether an event (`group:name`) never fires in an interrupt."""
    return event.partition(":")[0] in GROUPS_OF_TASKS or event in EVENTS_OF_TASKS


def can_nest(events: Iterable[str]) -> bool:
    """Whether one of the events can fire while a handler of another one runs on the same processor."""
    found = frozenset(events)
    return len(found) > 1 and not all(of_task(event) for event in found) and not found <= WITHOUT_INTERRUPTS


def comes_in_bursts(event: str) -> bool:
    """Whether an event can fire again and again while interrupts are off.

    The kernel gets the memory for entries of maps that are not allocated beforehand in an interrupt that it sends
    itself (kernel/bpf/memalloc.c): what comes in bursts soon finds none.
    """
    if event.startswith(SINGLE) or (event.startswith("probe:") and event.count(":") > 1):
        return False
    return event == "sched:sched_switch" or not of_task(event)

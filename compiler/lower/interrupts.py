"""Facts about events that atomicity rests on."""

from __future__ import annotations

from typing import FrozenSet, Tuple

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
wake_up_new_task, set_task_cpu and __schedule): two of these events about one task never run at the same time."""

IN_TASK_CONTEXT: FrozenSet[str] = frozenset({"syscalls", "raw_syscalls", "task", "exceptions"})
"""Groups whose events fire in the context of the running task, outside of interrupts: for one task they come one after
the other."""

SCHEDULER = "sched"
"""Its events fire with interrupts off, in task context or while a task is woken."""

NO_NESTING: FrozenSet[str] = IN_TASK_CONTEXT | {SCHEDULER}
"""Groups of events that do not interrupt one another in the middle of a handler and touch the same thread's or task's
entries: a wake-up in an interrupt is about a task that does not run."""
EVENTS_OF_THREAD: FrozenSet[str] = frozenset({"tid", "cpu"})
"""Event variables that name the running thread or its processor."""

"""Tracepoints found by the number in their `id` file."""

from __future__ import annotations

from pathlib import Path

from ktap.tracefs import Tracefs, TracepointName


def test_a_tracepoint_by_its_id(tmp_path: Path) -> None:
    names = {"sched:sched_switch": 316, "sched:sched_wakeup": 318, "net:net_dev_queue": 1320}
    (tmp_path / "available_events").write_text("\n".join(names))
    for name, number in names.items():
        group, _, event = name.partition(":")
        (tmp_path / "events" / group / event).mkdir(parents=True)
        (tmp_path / "events" / group / event / "id").write_text(f"{number}\n")
    tracefs = Tracefs(str(tmp_path))
    assert tracefs.match("id:318") == [TracepointName("sched", "sched_wakeup")]
    assert tracefs.match("id:13") == []
    assert tracefs.match("id:x") == []

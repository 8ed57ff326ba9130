"""Every case of the corpus that has events, recorded and replayed: the replay gives what the run gave."""

from __future__ import annotations

from pathlib import Path
from typing import Callable, Optional, Sequence
from unittest.mock import patch

import pytest
import test_cases as cases
from corpus import Case
from synthetic import TRACEFS, Names, SyntheticSource, Types

from ktap.event_format import EventFormat
from ktap.needs import Needs, needs
from ktap.options import Options as Command
from ktap.recorder import Recorder, RecordingHost, RecordingSource
from ktap.recording import RecordedEvent, everything
from ktap.replay import Recording, ReplayHost, ReplaySource, ReplayTypes
from ktap.replay_probes import ReplayProbes
from ktap.session import script_arguments
from ktap.sources import tables_of, types_of
from ktap.tracefs import Tracefs, TracepointName
from vm.diagnostic import Refusal
from vm.event import Probe, Source
from vm.host import Host
from vm.limits import Limits
from vm.machine import Machine, Options
from vm.run import Run, RunOptions

REFUSED = "a case that is refused has nothing to record"


class Live(SyntheticSource):
    """Invented events, with what a recorder asks of a live source: everything is captured."""

    def attach(self, probes: Sequence[Probe]) -> None:
        with patch("synthetic.needs", needs_everything):
            super().attach(probes)

    @property
    def bits(self) -> int:
        return max((len(event.wanted.filters) for event in self.events), default=0)


def needs_everything(*arguments: object) -> Needs:
    found = needs(*arguments)  # type: ignore[arg-type]  # as they are
    of_function = {index: demand.joined(everything(True)) for index, demand in found.of_function.items()}
    return found._replace(of_function=of_function)


def format_source(event: EventFormat) -> str:
    return Tracefs(str(TRACEFS)).format_source(TracepointName(event.group, event.name))


def machine_of(case: Case, sink: cases.Sink, host: Host, types: object) -> Machine:
    program = cases.compiled(case.path)[0]
    arguments = script_arguments(Command(script=case.path.name, arguments=case.arguments))
    return Machine(program, sink, host, Options(Limits()._replace(**case.limits), arguments, types=types))


def result_of(machine: Machine, source: Source, sink: cases.Sink) -> cases.Result:
    reports: list[str] = []
    try:
        outcome = Run(machine, source, RunOptions(live=False), reports.append).execute()
        status, lost = outcome.status, tuple((loss.events, loss.what) for loss in outcome.losses)
    except Refusal as refusal:
        reports.append(refusal.render())
        status, lost = refusal.status, ()
    return cases.Result(b"".join(sink.parts).decode("utf-8", "surrogateescape"), cases.told(reports), status, lost)


def record(case: Case, path: Path) -> cases.Result:
    sink, recorder = cases.Sink(), Recorder(str(path), pytest.fail)
    host = RecordingHost(cases.Host(), recorder)
    machine = machine_of(case, sink, host, recorder.typed(Types()))
    source = RecordingSource(Live(machine, case.events), host, Names(), format_source)
    return result_of(machine, source, sink)


def replay(
    case: Case, path: Path, change: Callable[[RecordedEvent], RecordedEvent] = lambda event: event
) -> cases.Result:
    sink, recording = cases.Sink(), Recording(str(path))
    recording.tracks = tuple(track._replace(event=change(track.event)) for track in recording.tracks)
    host = ReplayHost(recording)
    machine = machine_of(case, sink, host, ReplayTypes(recording))
    notices: list[str] = []
    probes = ReplayProbes(
        machine.program, recording, machine.limits.event_string_bytes, types_of(machine), notices.append
    )
    return result_of(machine, ReplaySource(recording, host, probes, tables_of(machine), None, notices.append), sink)


def recordable() -> list[Case]:
    return [case for case in cases.CASES if case.events]


def recorded(case: Case, path: Path) -> cases.Result:
    """The case's own result, it being recorded."""
    try:
        result = record(case, path)
    except Refusal:
        pytest.skip(REFUSED)
    if not Path(path).stat().st_size > 100:
        pytest.skip(REFUSED)
    return result


@pytest.mark.parametrize("case", recordable(), ids=lambda case: case.id)
def test_a_replay_gives_what_the_run_gave(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "recording"
    result = recorded(case, path)
    assert cases.lines(result.output) == list(case.output) or case.unordered
    assert replay(case, path) == result
    assert replay(case, path) == result


@pytest.mark.parametrize("case", [case for case in recordable() if "/" in case.source], ids=lambda case: case.id)
def test_filters_are_decided_as_they_were_in_the_kernel(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "recording"
    result = recorded(case, path)
    found = replay(case, path, lambda event: event._replace(filters=(), everything=True))
    refused: Optional[Sequence[str]] = [text for _, text in found.diagnostics if "was not recorded" in text]
    assert found == result or (refused and "pointer" in refused[0])

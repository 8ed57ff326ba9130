"""Cases of the corpus recorded and replayed: invented events through the parts that serve live ones."""

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


class Live(SyntheticSource):
    """Invented events, with what a recorder asks of a live source: everything is captured."""

    knows_all = True

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


def record(case: Case, path: Path, say: Callable[[str], object] = pytest.fail) -> cases.Result:
    sink = cases.Sink()
    machine, source = recording_of(case, path, sink, say)
    return result_of(machine, source, sink)


def recording_of(
    case: Case, path: Path, sink: cases.Sink, say: Callable[[str], object]
) -> tuple[Machine, RecordingSource]:
    recorder = Recorder(str(path), say)
    host = RecordingHost(cases.Host(), recorder)
    machine = machine_of(case, sink, host, recorder.typed(Types()))
    return machine, RecordingSource(Live(machine, case.events), host, Names(), format_source)


def replay(
    case: Case,
    path: Path,
    change: Callable[[RecordedEvent], RecordedEvent] = lambda event: event,
    say: Callable[[str], object] = str,
    cpu: Optional[int] = None,
) -> cases.Result:
    sink, recording = cases.Sink(), Recording(str(path))
    recording.tracks = tuple(track._replace(event=change(track.event)) for track in recording.tracks)
    host = ReplayHost(recording)
    machine = machine_of(case, sink, host, ReplayTypes(recording))
    probes = ReplayProbes(machine.program, recording, machine.limits.event_string_bytes, types_of(machine), say)
    return result_of(machine, ReplaySource(recording, host, probes, tables_of(machine), cpu, say), sink)

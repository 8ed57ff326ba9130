"""Recordings as files: cut off, damaged, invented, too large for the disk; and what a replay refuses."""

from __future__ import annotations

import io
import json
import os
import random
import struct
import zlib
from pathlib import Path
from typing import Sequence

import pytest
import recorded as replays
import test_cases as cases
from corpus import Case, fired

from ktap import recorder as writing
from ktap import recording as file
from ktap.btf import Argument
from ktap.chunks import HEAD, MAGIC, ChunkReader, ChunkWriter, NoRecording
from ktap.demand import Number, Read
from ktap.layout import Layout, aligned, decoder, fixed, integer, variable
from ktap.members import Member
from ktap.plain import Malformed, from_plain, to_plain
from ktap.recorder import Answers, Recorder, encoder
from ktap.replay import Recording, ReplayHost, ReplayNames
from vm.diagnostic import Refusal
from vm.event import Batch, Loss

SCRIPT = """
n = 0
trace test:event /a > 0/ { n += a0(arg0) print(execname, argstr, stack(2)) }
trace raw:event { print("raw", args.b) }
trace_end { print(n) }
function a0(x) { return x }
"""


def made_case(tmp_path: Path, script: str, events: Sequence[str] = (), name: str = "made.kp") -> Case:
    path = tmp_path / name
    path.write_text(script + "\n#> x\n")
    lines = events or [f"test:event a={a} text=t{a} stack=0x1004,0x2008 execname=x{a}" for a in range(40)]
    return Case(path, script, (), (), tuple(fired(line) for line in lines), 0)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return made_case(tmp_path, SCRIPT)


@pytest.fixture
def path(case: Case, tmp_path: Path) -> Path:
    made = tmp_path / "recording"
    assert replays.record(case, made).status == 0
    return made


def chunks_of(data: bytes) -> list[tuple[bytes, int, int]]:
    """Kind, start and end of every chunk."""
    found, at = [], len(MAGIC)
    while at < len(data):
        kind, size, _, _ = HEAD.unpack_from(data, at)
        found.append((kind, at, at + HEAD.size + size))
        at += HEAD.size + size
    return found


def replayed(case: Case, path: Path, data: bytes) -> tuple[cases.Result, list[str]]:
    path.write_bytes(data)
    notices: list[str] = []
    return replays.replay(case, path, say=notices.append), notices


def test_what_was_not_written_is_told_and_the_rest_replayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "CHUNK_BYTES", 500)
    case, path = made_case(tmp_path, SCRIPT), tmp_path / "recording"
    whole = replays.record(case, path)
    data = path.read_bytes()
    kinds = [kind for kind, _, _ in chunks_of(data)]
    assert kinds[0] == file.HEADER and kinds[-1] == file.END and kinds.count(file.RECORDS) > 3
    seen = set()
    for kind, _, end in chunks_of(data)[2:-1]:
        result, notices = replayed(case, path, data[:end])
        assert notices == [f"{path} has no end: it is replayed up to there"]
        assert whole.output.startswith(result.output.rpartition("\n")[0].rpartition("\n")[0])
        seen.add(len(result.output))
        if kind == file.RECORDS:
            cut, notices = replayed(case, path, data[: end + 5])
            assert notices == [f"{path} is cut off at byte {end}: it is replayed up to there"]
            assert cut == result
    assert len(seen) > 3


def test_a_damaged_chunk_ends_the_replay(case: Case, path: Path) -> None:
    data = bytearray(path.read_bytes())
    start = next(start for kind, start, _ in chunks_of(bytes(data)) if kind == file.RECORDS)
    data[start + HEAD.size + 9] ^= 4
    result, notices = replayed(case, path, bytes(data))
    assert result.output == "0\n"
    assert notices == [f"{path} is damaged at byte {start}: it is replayed up to there"]


def test_any_damage_is_told_or_harmless(case: Case, path: Path) -> None:
    """Flipped bits, cuts and overwritten bytes: a refusal, or a replay; never another exception."""
    data, chance = path.read_bytes(), random.Random(7)
    for _ in range(300):
        broken = bytearray(data)
        for _ in range(chance.randrange(1, 4)):
            broken[chance.randrange(len(broken))] ^= 1 << chance.randrange(8)
        if chance.random() < 0.3:
            del broken[chance.randrange(len(broken)) :]
        try:
            replayed(case, path, bytes(broken))
        except Refusal as refusal:
            assert refusal.status == 2


def rebuilt(data: bytes, kind: bytes, change: bytes) -> bytes:
    """The recording with the content of the first chunk of a kind replaced, its checksum right."""
    for found, start, end in chunks_of(data):
        if found == kind:
            packed = zlib.compress(change)
            head = HEAD.pack(kind, len(packed), len(change), zlib.crc32(packed))
            return data[:start] + head + packed + data[end:]
    raise AssertionError(kind)


def content(data: bytes, kind: bytes) -> bytes:
    for found, start, end in chunks_of(data):
        if found == kind:
            return zlib.decompress(data[start + HEAD.size : end])
    raise AssertionError(kind)


def mutated(value: object, chance: random.Random) -> object:
    """JSON with one thing in it changed."""
    if isinstance(value, list) and value and chance.random() < 0.9:
        place = chance.randrange(len(value))
        return [mutated(item, chance) if at == place else item for at, item in enumerate(value)]
    if isinstance(value, dict) and value and chance.random() < 0.9:
        place = chance.choice(sorted(value))
        return {key: mutated(item, chance) if key == place else item for key, item in value.items()}
    return chance.choice([None, True, -1, 0, 3, 1 << 40, 1 << 70, "", "x", "Q", "7s", [], {}, [["Slot"]], "\u1234"])


@pytest.mark.parametrize("kind", [file.HEADER, file.EVENTS, file.NAMES, file.END])
def test_invented_content_is_refused_or_replayed(case: Case, path: Path, kind: bytes) -> None:
    data, chance = path.read_bytes(), random.Random(11)
    parsed = json.loads(content(data, kind))
    for _ in range(300):
        change = json.dumps(mutated(parsed, chance)).encode()
        try:
            replayed(case, path, rebuilt(data, kind, change))
        except Refusal as refusal:
            assert refusal.status in (1, 2)


def test_invented_records_are_told(case: Case, path: Path) -> None:
    data, chance = path.read_bytes(), random.Random(13)
    rows = content(data, file.RECORDS)
    for _ in range(200):
        broken = bytearray(rows)
        for _ in range(3):
            broken[chance.randrange(len(broken))] = chance.randrange(256)
        replayed(case, path, rebuilt(data, file.RECORDS, bytes(broken)))
    huge = struct.pack("=QII", 1 << 63, 0, 0) + rows[16:]
    assert "a number that no integer holds" in replayed(case, path, rebuilt(data, file.RECORDS, huge))[1][0]
    none = struct.pack("=QII", 1, 900, 0) + rows[16:]
    assert "a record of no event" in replayed(case, path, rebuilt(data, file.RECORDS, none))[1][0]
    for cut in (8, 30, len(rows) - 3):
        assert "a record is cut off" in replayed(case, path, rebuilt(data, file.RECORDS, rows[:cut]))[1][0]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"version": 99}, "another version of ktap"),
        ({"byte_order": "big"}, "another byte order"),
    ],
)
def test_recordings_of_elsewhere(path: Path, header: dict[str, object], message: str) -> None:
    data = path.read_bytes()
    kept = from_plain(file.Header, json.loads(content(data, file.HEADER)))._replace(**header)
    path.write_bytes(rebuilt(data, file.HEADER, json.dumps(to_plain(kept)).encode()))
    with pytest.raises(Refusal, match=message) as refusal:
        Recording(str(path))
    assert refusal.value.status == 2


@pytest.mark.parametrize(
    "change",
    [
        {"arguments": ("a", "b%s", "c")},
        {"name": "x%s"},
        {"layout": Layout((integer("pid_tgid", "I"),) * 1001)},
        {"layout": Layout((fixed("x", 4)._replace(letters="5s"),))},
        {"layout": Layout((fixed("arguments", 8),))},
        {"reads": (Read("user", "string", Number(1), 10),)},
        {"members": (Member("curtask.x", Read("kernel", "bytes", Number(1), 8)),)},
    ],
)
def test_invented_events_are_refused(path: Path, change: dict[str, object]) -> None:
    data = path.read_bytes()
    events = from_plain(file.Events, json.loads(content(data, file.EVENTS)))
    raw = next(event for event in events.events if event.label == "raw:event")
    for broken in (events._replace(events=(raw._replace(**change),)), events._replace(bits=90)):
        path.write_bytes(rebuilt(data, file.EVENTS, json.dumps(to_plain(broken)).encode()))
        with pytest.raises(Refusal, match="cannot be replayed"):
            Recording(str(path))


def test_what_is_no_recording(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="cannot read"):
        Recording(str(tmp_path / "nothing"))
    (tmp_path / "text").write_text("print(1)\n")
    with pytest.raises(Refusal, match="is no recording of ktap"):
        Recording(str(tmp_path / "text"))
    (tmp_path / "empty").write_bytes(MAGIC)
    with pytest.raises(Refusal, match="nothing was recorded in it"):
        Recording(str(tmp_path / "empty"))


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("trace test:nothing { }", "`test:nothing` is not in the recording; it has test:event, raw:event"),
        ("trace raw:other { }", "`raw:other` is not in the recording"),
        ("trace profile-9hz { }", "`profile-9hz` is not in the recording"),
        ("trace test:event { print(curtask.comm) }", "`curtask.comm` is not in the recording"),
        ("trace test:event { print(args.nothing) }", "has no field `nothing`"),
        ("trace test:event /nothing == 1/ { }", "has no field `nothing`"),
        ("trace test:event { print(user_string(arg2)) }", "was not captured when the event fired"),
        ("trace test:event { print(ustack()) }", "the user stack was not captured"),
    ],
)
def test_what_was_not_recorded(path: Path, tmp_path: Path, script: str, message: str) -> None:
    result = replays.replay(made_case(tmp_path, script, name="other.kp"), path)
    assert message in result.diagnostics[0][1], result.diagnostics
    assert result.status == 1


def test_a_filter_on_memory_that_was_not_recorded(tmp_path: Path) -> None:
    path, events = tmp_path / "recording", ["syscalls:sys_enter_openat filename=0x10"]
    replays.record(made_case(tmp_path, "trace syscalls:sys_enter_openat { print(1) }", events), path)
    script = 'trace syscalls:sys_enter_openat /filename ~ "x*"/ { print(1) }'
    result = replays.replay(made_case(tmp_path, script, events, name="other.kp"), path)
    assert "the filter looks at the memory behind a pointer, which was not recorded" in result.diagnostics[0][1]


def test_any_script_runs_on_a_recording(path: Path, tmp_path: Path) -> None:
    script = "n = 0 trace test:* /b == 0 && pid == 100/ { n += 1 } trace_end { print(n) }"
    notices: list[str] = []
    result = replays.replay(made_case(tmp_path, script, name="other.kp"), path, say=notices.append)
    assert result.output == "39\n"  # a > 0
    assert notices == ["test:event was recorded through a filter: what that held back is not in the recording"]


def test_events_of_one_processor(path: Path, tmp_path: Path) -> None:
    script = "n = 0 trace raw:event { n += 1 } trace_end { print(n) }"
    other = made_case(tmp_path, script, name="other.kp")
    assert replays.replay(other, path, cpu=0).output == "40\n"
    assert replays.replay(other, path, cpu=1).output == "0\n"


def test_an_event_with_many_filters_is_not_recorded(tmp_path: Path) -> None:
    script = "".join(f"trace test:event /a == {n}/ {{ }} " for n in range(6))
    case = made_case(tmp_path, script)
    machine, source = replays.recording_of(case, tmp_path / "recording", cases.Sink(), pytest.fail)
    machine.run_main()
    with pytest.raises(Refusal, match="more than 4 different filters"):
        source.attach(machine.probes)
    source.close()


def test_a_full_disk(case: Case) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    with pytest.raises(OSError, match="No space left"):
        Recorder("/dev/full", pytest.fail)


def test_a_disk_that_fills_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case, path = made_case(tmp_path, SCRIPT), tmp_path / "recording"
    written: list[bytes] = []

    def write(self: ChunkWriter, kind: bytes, data: bytes) -> None:
        if kind == file.RECORDS:
            raise OSError(28, "No space left on device")
        written.append(kind)

    monkeypatch.setattr(ChunkWriter, "write", write)
    told: list[str] = []
    result = replays.record(case, path, told.append)
    assert told == [f"the recording {path} ends here: No space left on device"]
    assert result.output  # the run goes on
    assert written[:2] == [file.HEADER, file.EVENTS]


def test_records_that_were_not_written_are_a_loss(tmp_path: Path) -> None:
    recorder = Recorder(str(tmp_path / "recording"), lambda text: None)
    recorder.begin(file.Header(1, "little", "", "", 1, 0, 0), file.Events(0, ()), [])
    recorder.close()
    recorder._rows = [b"x", b"y"]
    recorder.flush()
    assert recorder.unwritten == 2
    recorder.finish(file.End(1, ()))
    recorder.close()


def test_answers_are_kept_once_and_forgotten_when_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "MOST_ANSWERS", 3)
    answers = Answers()
    for _ in range(2):
        answers.put("kernel", "1", "a")
    assert answers.knows("kernel", "1") and not answers.knows("user", "1")
    assert answers.take() == {"kernel": {"1": "a"}}
    assert answers.take() == {}
    for number in range(2, 5):
        answers.put("kernel", str(number), None)
    assert answers.take() == {"kernel": {"2": None, "3": None, "4": None}}
    assert not answers.knows("kernel", "1")


def test_the_host_and_names_of_a_replay(path: Path) -> None:
    recording = Recording(str(path))
    host, names = ReplayHost(recording), ReplayNames(recording)
    list(recording.chunks())
    assert (host.cpus(), host.architecture(), host.kernel_release()) == (4, "x86_64", cases.KERNEL_RELEASE)
    assert host.realtime_offset_ns() == 1_700_000_000_000_000_000
    assert host.kernel_symbol(0x1004) == "alpha+0x4"
    assert host.kernel_symbol(-1) == "0xffffffffffffffff"
    assert host.user_symbol(1, 0x20) == "0x20"
    assert host.kernel_address("alpha") is None  # nobody asked for it
    assert names.symbol(1) == names.symbol_name(1) == b"0x1"
    assert names.string(1) == b"(0x1)"
    assert names.pointer(1) == b"0000000000000001"
    assert names.constant("X") is None
    with pytest.raises(OSError, match="recording"):
        host.send_signal(1, 9)
    assert host.run("exit 3") == 3
    recording.close()


# -- chunks and plain data ------------------------------------------------------------------------


def test_chunks(tmp_path: Path) -> None:
    path = tmp_path / "chunks"
    writer = ChunkWriter(os.open(path, os.O_WRONLY | os.O_CREAT))
    writer.write(b"aaaa", b"1" * 1000)
    writer.write(b"bbbb", b"")
    writer.close()
    writer.close()
    with open(path, "rb") as opened:
        reader = ChunkReader(opened)
        assert reader.last() == (b"bbbb", b"")
        assert reader.read() == (b"aaaa", b"1" * 1000)
        assert reader.read() == (b"bbbb", b"")
        assert reader.read() is None
        assert reader.damage is None
    with pytest.raises(NoRecording):
        ChunkReader(io.BytesIO(b"what"))


def one_chunk(head: bytes, packed: bytes) -> ChunkReader:
    return ChunkReader(io.BytesIO(MAGIC + head + packed))


def test_chunks_that_lie() -> None:
    packed = zlib.compress(bytes(100))
    check = zlib.crc32(packed)
    for size in (99, 101, 1 << 30):
        reader = one_chunk(HEAD.pack(b"aaaa", len(packed), size, check), packed)
        assert reader.read() is None
        assert reader.damage == f"is damaged at byte {len(MAGIC)}"
        assert reader.read() is None
    junk = b"no zlib"
    assert one_chunk(HEAD.pack(b"aaaa", len(junk), 9, zlib.crc32(junk)), junk).read() is None
    reader = one_chunk(HEAD.pack(b"aaaa", 500, 9, check), packed)
    assert reader.last() is None
    assert reader.read() is None
    assert reader.damage == f"is cut off at byte {len(MAGIC)}"


def test_records_are_written_as_they_are_laid_out() -> None:
    layout = aligned((integer("pid_tgid", "Q"), fixed("comm", 16), variable("a", 100), variable("b", 100)))
    values = (5, 6, 7, 8, b"name".ljust(16, b"\0"), b"text", None)
    assert decoder(layout)(memoryview(encoder(layout)(values)), 0) == values
    plain = Layout((integer("x", "I"),))
    assert decoder(plain)(memoryview(encoder(plain)((1, 2, 3, 4))), 0) == (1, 2, 3, 4)


def test_what_is_not_known_of_a_record_is_not_known_when_it_is_read() -> None:
    slots = (integer("pid_tgid", "Q"), fixed("comm", 16), integer("in_interrupt", "I"), integer("ppid", "Q"))
    layout = Layout((*slots, variable("a", 100))).recorded()
    name = b"name".ljust(16, b"\0")
    for known in ((7, name, 1, 9), (None, None, 0, None), (7, None, 0, 0), (None, name, 1, None)):
        values = (5, 6, 7, *known, b"text")
        assert decoder(layout)(memoryview(encoder(layout)(values)), 0)[:-1] == values


@pytest.mark.parametrize("value", [Loss("what", "where", 3), Argument("name", from_plain(type(None), None))])
def test_plain_data(value: object) -> None:
    if isinstance(value, Loss):
        assert from_plain(Loss, json.loads(json.dumps(to_plain(value)))) == value
    else:
        with pytest.raises(Malformed):
            from_plain(Argument, to_plain(value))


def test_plain_data_of_other_kinds() -> None:
    with pytest.raises(TypeError, match="float is no plain data"):
        to_plain(1.5)
    for wrong in (["Loss", "a", "b", True], ["Loss", "a", "b"], ["Other", "a", "b", 1], "Loss", None):
        with pytest.raises(Malformed):
            from_plain(Loss, wrong)
    with pytest.raises(Malformed, match="no list"):
        from_plain(file.End, ["End", 1, {}])
    with pytest.raises(Malformed, match="no mapping"):
        from_plain(file.Names, ["Names", 3])


def test_a_batch_without_records_writes_nothing(tmp_path: Path) -> None:
    recorder = Recorder(str(tmp_path / "recording"), pytest.fail)
    recorder.begin(file.Header(1, "little", "", "", 1, 0, 0), file.Events(0, ()), [])
    size = (tmp_path / "recording").stat().st_size
    recorder.add(Batch((), 10**12, False), cases.Host())
    assert (tmp_path / "recording").stat().st_size == size
    recorder.close()

"""The process that opens probes on code and lets go of them."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path

import pytest
from tracing import EVENTS, trace

from ktap.keeper import MOST_FILES, Keeper


def opened(path: str, flags: int) -> int:
    return os.open(path, flags)


def passed(first: int, second: int, number: int) -> int:
    return os.dup((first, second)[number])


def keeper(end: Path) -> Keeper:
    return Keeper({"open": opened, "pass": passed}, lambda: end.write_text("ended"))


def test_what_it_opens_is_ours_too_and_stays_with_it(tmp_path: Path) -> None:
    kept = keeper(tmp_path / "end")
    path = tmp_path / "file"
    path.write_text("text")
    file = kept.call("open", (str(path), os.O_RDONLY))
    assert os.read(file, 9) == b"text"
    assert not os.get_inheritable(file)
    held = f"/proc/{kept.number}/fd"
    assert str(path) in [os.readlink(f"{held}/{number}") for number in os.listdir(held)]
    other = kept.call("pass", (1,), [0, file])
    assert os.path.sameopenfile(other, file)
    os.close(other)
    os.close(file)
    kept.let_go()
    assert str(path) not in [os.readlink(f"{held}/{number}") for number in os.listdir(held)]
    kept.close()
    assert not (tmp_path / "end").exists()


def test_it_is_not_called_what_ktap_is(tmp_path: Path) -> None:
    """Who kills all that is called ktap is to leave it: it lets go of ktap's probes then."""
    kept = keeper(tmp_path / "end")
    named = Path(f"/proc/{kept.number}")
    assert (named / "comm").read_text() == "probe-keeper\n"
    assert (named / "cmdline").read_bytes().strip(b"\0") == b"probe-keeper"
    kept.close()


def test_what_cannot_be_opened_is_said(tmp_path: Path) -> None:
    kept = keeper(tmp_path / "end")
    with pytest.raises(FileNotFoundError) as caught:
        kept.call("open", ("/nothing/there", os.O_RDONLY))
    assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, "/nothing/there")
    os.close(kept.call("open", ("/dev/null", os.O_RDONLY)))
    kept.close()


def test_a_message_of_any_length(tmp_path: Path) -> None:
    kept = Keeper({"count": lambda file, numbers: os.dup(file) if len(numbers) == 200_000 else -1})
    os.close(kept.call("count", (tuple(range(1 << 40, (1 << 40) + 200_000)),), [0]))
    assert MOST_FILES >= 2
    kept.close()


def test_it_sees_to_the_end_when_ktap_is_killed(tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        kept = keeper(tmp_path / "end")
        kept.call("open", ("/dev/null", os.O_RDONLY))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    deadline = time.monotonic() + 20
    while not (tmp_path / "end").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (tmp_path / "end").exists()


def test_without_it_there_are_no_probes(tmp_path: Path) -> None:
    kept = keeper(tmp_path / "end")
    os.kill(kept.number, signal.SIGKILL)
    with pytest.raises(OSError, match="has been ended"):
        while True:  # until it has died of it
            os.close(kept.call("open", ("/dev/null", os.O_RDONLY)))
    kept.let_go()
    kept.close()


@pytest.mark.live
@pytest.mark.parametrize("tier", ["vm", "kernel", EVENTS])
def test_what_it_does_is_left_out(tier: str) -> None:
    """It calls the C library while the first probes are there already, and the last still."""
    functions = ("malloc", "free", "syscall", "recvmsg", "sendmsg", "sendto", "recv", "close")
    events = ", ".join(f"probe:libc:{name}, probe:libc:{name}%return" for name in functions)
    script = f"trace {events} {{ n[pid, ppid] += 1 }} trace_end {{ for (p, q, v in pairs(n)) {{ print(p, q) }} }}"
    trace(script, duration_s=0.1, everyone=True, tier=tier)  # where it is compiled, LLVM has a process of its own
    found = [tuple(line.split("\t")) for line in trace(script, duration_s=0.3, everyone=True, tier=tier).lines]
    own = str(os.getpid())
    assert not [pair for pair in found if own in pair]

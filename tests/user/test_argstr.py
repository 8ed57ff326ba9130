"""The text of a probe's events is what the kernel's own uprobe_events print for the same fetch arguments."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Iterator, List

import pytest
from processor import words
from tracing import EVENTS, trace

from ktap import tracefs
from ktap.elf import open_binary
from vm.diagnostic import Refusal

pytestmark = [
    pytest.mark.live,
    pytest.mark.root,
]
CALLS = 3
ENTRIES = [
    "",
    "%di",
    "fd=%di:s32 %di:u8 %di:x16",
    "name=+0(%si):string",
    "name=+0(%si):string in=+6(+8(%dx)):string short=+4(+8(%dx)):s16",
    "first=+0(+8(%dx)):s32 flags=+24(+8(%dx)):x32 bits=+24(+8(%dx)):b8@8/32",
    "bits=+16(%dx):b4@0/8[4] high=+16(%dx):b12@2/16[2]",
    "bytes=+16(%dx):u8[4] words=+16(%dx):x16[2] x=+0(%dx):s64",
    "comm=$comm c=%di:char seventh=$stack1 eighth=$stack2:u8",
    "constant=\\\\99:u8 letter=+0(%si):char tail=+4(%si):string",
    "words=+24(%dx):string[4] one=+32(%dx):string[1] n=%di:u8 rest=+40(%dx):ustring[2]",
]
RETURNS = ["", "$retval", "r=$retval:s32 comm=$comm", "low=$retval:u8 ax=%ax"]
STEADY = () if os.uname().machine == "x86_64" else ("setarch", "--addr-no-randomize")
"""In front of a program that is to have the same on its stack each time: where all arguments of `work` are in registers,
what lies there are addresses."""


def tell(path: Path, text: str) -> None:
    """Add a line to a file that cannot be sought in."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def remove(path: Path, text: str) -> None:
    """Remove an event, which the kernel may hold a moment longer than who has traced it."""
    for _ in range(100):
        try:
            return tell(path, text)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            time.sleep(0.05)
    tell(path, text)


@contextmanager
def uprobe_event(definition: str) -> Iterator[Path]:
    """An event of the kernel's own, enabled in an instance of its own; the instance's directory."""
    name = f"ktap_test_{os.getpid()}"
    try:
        root = Path(tracefs.find().root)
    except Refusal:
        pytest.skip("no tracefs")
    kind, path_and_rest = definition.split(" ", 1)
    instance = root / "instances" / name
    instance.mkdir()
    try:
        tell(root / "uprobe_events", f"{kind}:{name}/work {path_and_rest}\n")
        try:
            enable = instance / "events" / name / "work" / "enable"
            enable.write_text("1")
            yield instance
            enable.write_text("0")
        finally:
            remove(root / "uprobe_events", f"-:{name}/work\n")
    finally:
        instance.rmdir()


def kernels_text(definition: str, program: Path) -> List[str]:
    with ExitStack() as stack:
        try:
            instance = stack.enter_context(uprobe_event(definition))
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            pytest.skip("this kernel knows no such fetch arguments")
        subprocess.run([*STEADY, str(program), str(CALLS)], check=True)
        lines = (instance / "trace").read_text().splitlines()
    return [re.split(r"\d+\.\d+: ", line, maxsplit=1)[1] for line in lines if not line.startswith("#")]


@pytest.mark.parametrize("returns, fetch", [(False, text) for text in ENTRIES] + [(True, text) for text in RETURNS])
def test_texts_agree(fixed: Path, returns: bool, fetch: str) -> None:
    fetch = words(fetch.replace("\\\\", "\\"))
    offset = next(function.offset for function in open_binary(str(fixed)).functions if function.name == "work")
    wanted = kernels_text(f"{'r' if returns else 'p'} {fixed}:{offset:#x} {fetch}", fixed)
    assert len(wanted) == CALLS
    script = f"trace probe:{fixed}:work{'%return' if returns else ''} {fetch} {{ print(argstr) }}"
    for tier in ("vm", EVENTS):
        assert trace(script, [*STEADY, str(fixed), str(CALLS)], tier=tier).lines == wanted


def test_constant_strings(fixed: Path) -> None:
    """The kernel's own events on programs show them as (fault): it looks for the text in the program's memory."""
    fetch = words('text=\\"con/st, ant" none=\\"":string n=%di:u16 last=\\"é"')
    script = f"trace probe:{fixed}:work {fetch} /text ~ 'con*'/ {{ print(args.text, args.n, args.last, argstr) }}"
    shown = '(0x{:x}) text="con/st, ant" none="" n={} last="é"'
    place = next(function.offset for function in open_binary(str(fixed)).functions if function.name == "work")
    wanted = [f"con/st, ant\t{n}\té\twork: {shown.format(0x400000 + place, n)}" for n in range(CALLS)]
    for tier in ("vm", EVENTS):
        assert trace(script, [str(fixed), str(CALLS)], tier=tier).lines == wanted


def test_strings_of_an_array_are_a_table(fixed: Path) -> None:
    script = f"""
    trace probe:{fixed}:work {words("words=+24(%dx):string[3]")} {{
        n[args.words[1], len(args.words)] += 1
        for (k, word in sort_pairs(args.words)) {{ print(k, word) }}
    }}
    trace_end {{ print(n["one", 3]) }}
    """
    for tier in ("vm", EVENTS):
        wanted = ["1\tone", "2\t", "3\tthree"] * CALLS + [str(CALLS)]
        assert trace(script, [str(fixed), str(CALLS)], tier=tier).lines == wanted


def test_as_many_strings_as_an_array_can_have(fixed: Path) -> None:
    fetch = words("a=+24(%dx):string[64] b=+24(%dx):string[64]")
    script = f"trace probe:{fixed}:work {fetch} {{ print(args.a[3], args.b[1]) }}"
    assert trace(script, [str(fixed), str(CALLS)]).lines == ["three\tone"] * CALLS


def test_strings_of_an_event_that_somebody_has_defined(fixed: Path) -> None:
    offset = next(function.offset for function in open_binary(str(fixed)).functions if function.name == "work")
    fetch = words("words=+24(%dx):string[3] n=%di:u8")
    with uprobe_event(f"p {fixed}:{offset:#x} {fetch}") as instance:
        (directory,) = (instance / "events").glob("ktap_test_*")
        script = f"trace {directory.name}:work {{ print(args.words[1], args.words[2], args.words[3], arg2, argstr) }}"
        with pytest.raises(Refusal, match="--backend perf can trace it"):
            trace(script, [str(fixed), str(CALLS)])
        with pytest.raises(Refusal) as caught:
            trace(script, [str(fixed), str(CALLS)], tier=EVENTS)
        assert "disable the event there" in str(caught.value.diagnostics[0].hint)
        (directory / "work" / "enable").write_text("0")
        traced = trace(script, [str(fixed), str(CALLS)], tier=EVENTS)
    text = f'work: (0x{0x400000 + offset:x}) words={{"one","","three"}} n='
    assert traced.lines == [f"one\t\tthree\t{n}\t{text}{n}" for n in range(CALLS)]

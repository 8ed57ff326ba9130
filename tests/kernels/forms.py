"""Fetch arguments of kernel functions: their text is what the kernel's own kprobe_events print for the same words.

Run on other kernels by test_kernels. A form that a kernel does not know is told of ktap alone.
"""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from pathlib import Path
from typing import Dict, Iterator, List, Sequence, Tuple

import pytest
from processor import HERE, has_typed, words
from tracing import EVENTS, python, trace

from ktap import links, tracefs
from ktap.functions import kernel_functions
from vm.diagnostic import Refusal

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(links.probe_type() is None, reason="this kernel cannot probe its functions"),
]

GROUP = "ktap_forms"
STACKED = "x64" if os.uname().machine == "aarch64" else "symbol"
"""On arm64 stacks of the kernel may lie right behind BPF programs, of which nobody tells where they end."""
ENTRIES = (
    "%di",
    "%si %dx:u8 %dx:x16 %dx:u32",
    "dfd=%di:s32 f=+0(%si):ustring",
    "f=+0(%si):string first=+0(%si):u8 next=+1(%si):char",
    "u=+u0(%si):string",
    "n=$arg1:s32 flags=+0($arg3):x64 name=+0($arg2):ustring",
    f"c=$comm d=$comm:string s=$stack:x64 s0=$stack0:{STACKED} s1=$stack1:u32",
    "k=\\99:u8 n=\\-5:s32 h=\\0x10",
    "v=@linux_banner+6:char w=@linux_banner:x32 b=@linux_banner+1:u8 back=@linux_banner-1:x8",
    "low=%di:b4@0/32 high=%di:b8@8/16 all=%di:b64@0/64",
    "a=+0(%dx):b4@0/8[3] b=+0(%dx):b4@4/8[2]",
    "a=+0(%dx):x64[3] b=+8(%dx):s16[2] c=+0(%dx):u8[4] d=+0(%si):u32[1]",
    "i=%ip:symbol",
    "a=%ax b=%r8 c=%r15 d=%cs e=%flags:x64 f=%ss g=%sp h=%bp",
    "nested=+0(+0($stack)):x8 deeper=+0(+0(+0($stack))):x8",
)
RETURNS = (
    "$retval:s32",
    "r=$retval:x64 c=$comm ax=%ax:u16",
    "dfd=$arg1:s32 name=+0($arg2):ustring flags=+0($arg3):x64 r=$retval:s32",
)
"""Arguments at a return from Linux 6.9 on."""
PATH_AT, ARGV_AT = HERE.execve_arguments, HERE.execve_arguments + HERE.second_argument
EXECUTED = (
    f"argv=+u0(+{ARGV_AT}(%di)):ustring[2] path=+0(+{PATH_AT}(%di)):ustring",
    f'first=+u0(+{ARGV_AT}(%di)):ustring[1] text=\\"con/stant" empty=\\"":string n=\\7:u8',
)
"""Of the registers that a program had when it called execve."""
APART = re.compile(r"\[|b\d+@|%return")
"""Forms that ktap itself takes apart without BPF."""
OF_THE_CALL = re.compile(r"%return .*(\$arg|count|file)")
"""Forms at a return that take fexit, since they are arguments of the call."""
TYPED_RETURNS = ("count=count:u16 f=file->f_flags r=$retval:s64", "$arg*", "n=$arg3 $arg3 r=$retval")
TYPED = (
    "file->f_flags mode=file->f_inode->i_mode",
    "$arg*",
    "count=count n=count:u8",
    "$arg3 n=$arg3 low=$arg3:u8 again=count",
    "name=$arg1:%pD",
)
"""Of functions whose parameters are known (Linux 6.4; `%pD` 6.12)."""
CODE = """
import os
for name in ("/etc/hostname", "/nothing/there"):
    try:
        os.close(os.open(name, os.O_RDONLY))
    except OSError:
        pass
os.write(os.open("/dev/null", os.O_RDWR), b"hello")
os.execv("/bin/true", ["/bin/true", "an argument"])
"""
Probe = Tuple[str, str]
"""A function, with %return or not, and the fetch arguments."""
PROBES: List[Probe] = [
    *(("do_sys_openat2", words(fetch)) for fetch in ENTRIES),
    *(("do_sys_openat2%return", words(fetch)) for fetch in RETURNS),
    *(("vfs_write", fetch) for fetch in TYPED),
    *(("vfs_write%return", fetch) for fetch in TYPED_RETURNS),
    *((HERE.execve, words(fetch)) for fetch in EXECUTED),
]


def tell(path: Path, text: str) -> None:
    """Add a line to a file that cannot be sought in."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


@contextmanager
def kernels_own(probes: Sequence[Probe]) -> Iterator[Dict[int, Path]]:
    """Events of the kernel's own for those probes that it takes, by number, in an instance of their own: its trace file."""
    root = Path(tracefs.find().root)
    instance = root / "instances" / GROUP
    instance.mkdir()
    taken: List[int] = []
    try:
        for number, (function, fetch) in enumerate(probes):
            symbol, returns, _ = function.partition("%return")
            try:
                tell(root / "kprobe_events", f"{'r' if returns else 'p'}:{GROUP}/form{number} {symbol} {fetch}\n")
                taken.append(number)
            except OSError:
                continue
        for number in taken:
            (instance / "events" / GROUP / f"form{number}" / "enable").write_text("1")
        yield dict.fromkeys(taken, instance / "trace")
    finally:
        for number in taken:
            (instance / "events" / GROUP / f"form{number}" / "enable").write_text("0")
            tell(root / "kprobe_events", f"-:{GROUP}/form{number}\n")
        instance.rmdir()


@pytest.mark.parametrize("tier", ["vm", EVENTS])
def test_texts_are_the_kernels(tier: str) -> None:
    if tier == EVENTS and not links.has_multi():
        pytest.skip("each definition costs this kernel too much time; they are compared where it is less")
    with kernels_own(PROBES) as own:
        assert {0, 2, 6, 7, 12} <= own.keys()
        probes = {number: probe for number, probe in enumerate(PROBES) if can_be_told(" ".join(probe))}
        if tier == EVENTS:  # each takes the kernel its time to define and to remove
            probes = {
                number: probe for number, probe in probes.items() if number in own and APART.search(" ".join(probe))
            }
        handlers = "\n".join(
            f"trace probe:{function} {fetch} {{ print({number}, pid, argstr) }}"
            for number, (function, fetch) in probes.items()
        )
        traced = trace(handlers, python(CODE), tier=tier)
        (path,) = set(own.values())
        wanted = texts(path.read_text(errors="surrogateescape"), traced.lines[0].split("\t")[1])
    assert not traced.losses
    found: Dict[int, List[str]] = {}
    for line in traced.lines:
        number, _, text = line.split("\t", 2)
        found.setdefault(int(number), []).append(text.partition(": ")[2])
    assert found.keys() == probes.keys()
    for number in own.keys() & probes.keys():  # the kernel's own were there before the command was
        texts_found = [comparable(text) for text in found[number]]
        assert texts_found == wanted[number][-len(texts_found) :], PROBES[number]


def can_be_told(probe: str) -> bool:
    """Only some kernels have fexit, and tell where their data is."""
    if "@linux_banner" in probe and kernel_functions().symbol("linux_banner") is None:
        return False
    return has_typed() or OF_THE_CALL.search(probe) is None


def texts(trace_file: str, pid: str) -> Dict[int, List[str]]:
    """What the kernel printed for a process, by the probe's number."""
    found: Dict[int, List[str]] = {}
    for match in re.finditer(rf"-{pid} .*? \d+\.\d+: form(\d+): (.*)$", trace_file, re.M):
        found.setdefault(int(match[1]), []).append(comparable(match[2]))
    return found


def comparable(text: str) -> str:
    """Without the place, which the kernel has behind an ENDBR, or does not know where another probe is on the return."""
    return re.sub(r"^\([^)]*\)", "()", text)


@pytest.mark.parametrize(
    ("fetch", "at", "message"),
    [
        ("a=@no_such_symbol:u8", 2, "the kernel has no symbol `no_such_symbol`"),
        ("a=file->f_falgs", 2, "has no member `f_falgs`"),
        ("a=fiel", 2, "no value: `fiel`"),
        ("a=%zz", 2, "no register `%zz`"),
        (words("a=%si:string[2]"), 12, "only memory can be an array"),
    ],
)
def test_what_is_wrong(fetch: str, at: int, message: str) -> None:
    with pytest.raises(Refusal) as caught:
        trace(f"trace probe:vfs_write {fetch} {{ }}", duration_s=0.1)
    (diagnostic,) = caught.value.diagnostics
    assert message in diagnostic.message
    assert diagnostic.span is not None and diagnostic.span.column == len("trace probe:vfs_write ") + at + 1


def test_a_symbol_as_a_string() -> None:
    """Asked for it, Linux 6.12 has been seen to crash in its own code, so it is not asked here."""
    script = words("trace probe:vfs_write n=%dx a=%ip:symbol b=%ip:symstr /n == 5/ { print(argstr) }")
    (line,) = trace(script, python(CODE)).lines
    shown = re.fullmatch(r"vfs_write: \(.*\) n=0x5 a=(vfs_write\+0x\w+/0x\w+) b=\"(.*)\"", line)
    assert shown is not None and shown[1] == shown[2], line


RETURNING = """
n = 0
trace probe:vfs_write%return /count == 5/ { print("w", args.count, arg3, retval, args.file.f_inode.i_ino, arg5) }
trace probe:do_filp_open%return { if (kernel_string(retval.f_path.dentry.d_name.name) == "hostname") { n += 1 } }
trace probe:vfs_write%return n=count ino=file->f_inode->i_ino { if (args.n == 5) { print("f", args.n, args.ino, argstr) } }
trace_end { print("d", n) }
"""


@pytest.mark.skipif(not has_typed(), reason="this kernel has no fexit")
@pytest.mark.parametrize("tier", ["vm", "auto"])
def test_arguments_at_a_return(tier: str) -> None:
    number = os.stat("/dev/null").st_ino
    lines = trace(RETURNING, python(CODE), tier=tier).lines
    assert f"w\t5\t5\t5\t{number}\tnil" in lines
    assert f"f\t5\t{number}\tvfs_write: (<- vfs_write) n=5 ino={number}" in lines
    assert "d\t1" in lines


def test_members_are_values() -> None:
    script = """
    trace probe:vfs_write file->f_inode->i_ino n=count r=+0(buf):string /n == 5/ { print(args.arg1, args.n, args.r) }
    """
    number = os.stat("/dev/null").st_ino
    assert f"{number}\t5\thello" in trace(script, python(CODE)).lines

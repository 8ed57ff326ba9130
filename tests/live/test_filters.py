"""Filters decided in the kernel against the same conditions computed here from unfiltered events."""

from __future__ import annotations

import fnmatch
import re
from typing import Callable, Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tracing import WAYS, python, trace

from ktap.glob import parse_glob
from ktap.tracefs import find
from vm.diagnostic import Refusal

pytestmark = pytest.mark.live

SEEKS = """
import os
fd = os.memfd_create("x")
os.write(fd, b"12345678")
for offset in (-1, 0, 1, 2, 7, 8, 0x80000000, 0xffffffff, 0x100000000, 1 << 62):
    for whence in (0, 1, 2, 3, 7):
        for file in (fd, -1):
            try:
                os.lseek(file, offset, whence)
            except OSError:
                pass
"""
OPERATIONS = {
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "&": lambda a, b: a & b != 0,
}


def filtered(event: str, values: str, conditions: Sequence[str], buffer: str = "ring") -> list[list[list[int]]]:
    """For every condition the values (integers, as print shows them) of the events that pass it."""
    probes = [f"trace {event} {c and f'/{c}/'} {{ print({n}, {values}) }}\n" for n, c in enumerate(conditions)]
    found: list[list[list[int]]] = [[] for _ in conditions]
    for line in trace("".join(probes), python(SEEKS), buffer=buffer).lines:
        number, *rest = map(int, line.split("\t"))
        found[number].append(rest)
    return found


def seeks(conditions: Sequence[str], buffer: str = "ring") -> list[list[list[int]]]:
    """Offset and whence of the seeks that pass."""
    return filtered("syscalls:sys_enter_lseek", "args.offset, args.whence", conditions, buffer)


def unsigned(value: int) -> int:
    return value & (1 << 64) - 1


def test_integers() -> None:
    """The fields of system calls are unsigned and 8 bytes wide, whatever their types are called."""
    cases = [(operator, value) for operator in OPERATIONS for value in (0, 1, 7, 0x80000000, -1)]
    everything, *found = seeks(["", *(f"offset {operator} {value}" for operator, value in cases)])
    assert len(everything) >= 100
    for (operator, value), passed in zip(cases, found):
        expected = [pair for pair in everything if OPERATIONS[operator](unsigned(pair[0]), unsigned(value))]
        assert passed == expected, (operator, value)


def test_signed_integers() -> None:
    cases = [(operator, value) for operator in OPERATIONS for value in (-9, -22, 0, 4)]
    conditions = [f"ret {operator} {value}" for operator, value in cases]
    everything, *found = filtered("syscalls:sys_exit_lseek", "arg1", ["", *conditions])
    assert len({value for (value,) in everything}) > 5
    for (operator, value), passed in zip(cases, found):
        assert passed == [[result] for (result,) in everything if OPERATIONS[operator](result, value)], (
            operator,
            value,
        )


CONNECTIVES = {
    "whence == 0 && offset == 7": lambda o, w: w == 0 and o == 7,
    "whence == 0 || offset == 7": lambda o, w: w == 0 or o == 7,
    "!(whence == 0 || offset == 7)": lambda o, w: not (w == 0 or o == 7),
    "whence > 1 && (offset == 1 || offset == 2 || !(offset < 8))": lambda o, w: w > 1 and (o in (1, 2) or o >= 8),
    "whence & 3 && !(whence & 4)": lambda o, w: bool(w & 3) and not w & 4,
}


@pytest.mark.parametrize("buffer", WAYS)
def test_connectives(buffer: str) -> None:
    everything, *found = seeks(["", *CONNECTIVES], buffer)
    for (condition, holds), passed in zip(CONNECTIVES.items(), found):
        expected = [[o, w] for o, w in everything if holds(unsigned(o), w)]
        assert 0 < len(expected) < len(everything)
        assert passed == expected, condition


NAMES = ["a", "ab", "abc", "abcabd", "b", "ba", "bab", "x.so", "x.so.6", "libx.so.1", "-", "a b", "aXb", "z" * 200]
OPENS = f"""
import os
for name in {NAMES!r}:
    try:
        os.open("/" + name, os.O_RDONLY)
    except OSError:
        pass
"""


def opens(conditions: Sequence[str]) -> list[list[str]]:
    """For every condition the names that were opened and passed it."""
    probe = "trace syscalls:sys_enter_openat /%s/ { print(%d, user_string(arg2) || 0) }"
    found: list[list[str]] = [[] for _ in conditions]
    script = "\n".join(probe % (condition, number) for number, condition in enumerate(conditions))
    for line in trace(script, python(OPENS)).lines:
        number, _, name = line.partition("\t")
        if name[1:] in NAMES:
            found[int(number)].append(name[1:])
    return found


def glob_holds(pattern: str, text: str) -> bool:
    return re.fullmatch(fnmatch.translate(pattern), text, re.S) is not None


GLOBS = ["a*", "*b", "*a*", "*ab*", "a*b", "?", "a?", "a?b", "*.so*", "*.so.?", "[ab]*", "[!a]*", "*[bc]?", "z*"]


def test_globs_of_user_strings() -> None:
    found = opens([f'filename ~ "/{pattern}"' for pattern in GLOBS])
    for pattern, passed in zip(GLOBS, found):
        assert passed == [name for name in NAMES if glob_holds(pattern, name)], pattern


@pytest.mark.parametrize("pattern", ["*a*b*", "*b*a*b", "*", "*a*[bc]*d*"])
def test_globs_with_several_stars(pattern: str) -> None:
    assert opens([f'filename ~ "/{pattern}"']) == [[name for name in NAMES if glob_holds(pattern, name)]]


def test_equality_of_user_strings() -> None:
    assert opens([f'filename == "/{name}"' for name in NAMES]) == [[name] for name in NAMES]


def test_inequality_of_user_strings() -> None:
    assert opens(['filename != "/ab" && filename != "/a*"']) == [[name for name in NAMES if name[0] != "a"]]


COMMS = ["x", "xy", "xyz", "fifteen-letters"]
RENAMES = f"""
import os
for name in {COMMS!r}:
    with open("/proc/self/comm", "w") as file:
        file.write(name)
    os.getppid()
"""


WORDS = {
    '== "x"': ["x"],
    '== "xyz"': ["xyz"],
    '== "fifteen-letters"': ["fifteen-letters"],
    '!= "xy"': ["x", "xyz", "fifteen-letters"],
    '~ "x*"': ["x", "xy", "xyz"],
    '~ "*y*"': ["xy", "xyz"],
    '~ "*-l?tt*s"': ["fifteen-letters"],
    '~ "??"': ["xy"],
    '== "x*"': ["x", "xy", "xyz"],
    '== "a-name-longer-than-any"': [],
}


def test_the_name_of_the_task() -> None:
    probe = "trace syscalls:sys_enter_getppid /execname %s/ { print(%d, execname) }"
    script = "\n".join(probe % (condition, number) for number, condition in enumerate(WORDS))
    found: list[list[str]] = [[] for _ in WORDS]
    for line in trace(script, python(RENAMES)).lines:
        number, name = line.split("\t")
        found[int(number)].append(name)
    assert dict(zip(WORDS, found)) == WORDS


def test_filters_on_the_running_task_alone_take_no_perf_events() -> None:
    """Raw tracepoints serve, of which the kernel lets go at once; it is said how long perf events of many take."""
    script = 'n = 0 trace sched:* /execname == "true"/ { n += 1 %s } trace_end { print(n > 5) }'
    traced = trace(script % "", EXEC)
    assert (traced.lines, traced.notices) == (["true"], [])
    traced = trace(script % "last = arg0", EXEC)
    assert traced.lines == ["true"]
    told = [re.match(r"(\d+) perf events: the kernel will take about \d+ s", notice) for notice in traced.notices]
    assert [int(match[1]) for match in told if match] == [len(find().match("sched:*"))]


EXEC = ["/bin/sh", "-c", "/bin/true; /bin/echo >/dev/null; exec /bin/true"]


PATHS = {
    'filename == "/bin/true"': 2,
    'filename ~ "*/true"': 2,
    'filename ~ "*in/ech*"': 1,
    'filename != "/bin/true"': 2,
    'filename == "/bin/tru"': 0,
    'filename == "/bin/truer"': 0,
}


def test_strings_behind_a_data_loc() -> None:
    probe = "trace sched:sched_process_exec /%s/ { print(%d) }"
    script = "\n".join(probe % (condition, number) for number, condition in enumerate(PATHS))
    lines = trace(script, EXEC).lines
    assert {condition: lines.count(str(number)) for number, condition in enumerate(PATHS)} == PATHS


def test_character_arrays_and_context() -> None:
    """`prev_comm` lies in the record; `pid` is the task's where the event has no such field."""
    script = """
    trace sched:sched_switch /prev_comm == "xyz" && pid != 0 && cpu < 4096 && uid == 0/ { n["is"] += 1 }
    trace sched:sched_switch /prev_comm ~ "x?z"/ { n["like"] += 1 }
    trace_end { print(n["is"] == n["like"], n["is"] >= 5) }
    """
    code = 'import time\nwith open("/proc/self/comm", "w") as f: f.write("xyz")\nfor _ in range(5): time.sleep(0.002)'
    assert trace(script, python(code)).lines == ["true\ttrue"]


def test_tid_and_pid() -> None:
    script = """
    trace syscalls:sys_enter_getppid { if (pid == tid) { n["main"] += 1 } else { n["thread"] += 1 } }
    trace_end { for (k, v in sort_pairs(n)) { print(k, v) } }
    """
    code = """
import os, threading
def work():
    for _ in range(20): os.getppid()
thread = threading.Thread(target=work)
thread.start(); thread.join(); os.getppid()
"""
    assert trace(script, python(code)).lines == ["main\t1", "thread\t20"]


def test_a_field_that_only_some_events_of_a_glob_have() -> None:
    traced = trace("trace syscalls:sys_enter_* /whence == 7/ { print(probename) }", python(SEEKS))
    assert traced.lines == ["sys_enter_lseek"] * 20
    assert len(traced.notices) == 1 and "lack a field" in traced.notices[0]


@pytest.mark.parametrize(
    ("event", "condition", "message", "hint"),
    [
        ("sched:sched_switch", "prev_pdi == 0", "`sched:sched_switch` has no field `prev_pdi`", "did you mean `prev_pid`?"),
        ("sched:sched_switch", "prev_pid == bash", "is a number and cannot be compared with `bash`", None),
        ("sched:sched_switch", "prev_comm > 3", "is a string: only ==, != and ~", None),
        ("syscalls:sys_enter_newfstat", "statbuf == x", "is a pointer", None),
        ("syscalls:sys_*", "nothing == 1", "has the fields of the filter", None),
        ("sched:sched_switch", "prev_pid = 0", "filter", "did you mean '=='?"),
    ],
)  # fmt: skip
def test_filters_that_do_not_fit(event: str, condition: str, message: str, hint: str) -> None:
    with pytest.raises(Refusal) as caught:
        trace(f"trace {event} /{condition}/ {{ }}", python(""))
    assert caught.value.status == 1
    (diagnostic,) = caught.value.diagnostics
    assert message in diagnostic.message
    assert hint is None or diagnostic.hint == hint


TERMS = st.lists(
    st.tuples(
        st.sampled_from(["offset", "whence"]),
        st.sampled_from(sorted(OPERATIONS)),
        st.sampled_from([0, 1, 2, 3, 7, 8, 0x80000000, 0xFFFFFFFF, 1 << 62]),
        st.booleans(),
        st.sampled_from(["&&", "||"]),
    ),
    min_size=1,
    max_size=6,
)
Terms = list[tuple[str, str, int, bool, str]]


def written(terms: Terms) -> tuple[str, Callable[[int, int], bool]]:
    """A condition of terms joined from the left, as a filter and as a function."""
    text = ""
    for index, (field, operator, value, negated, sign) in enumerate(terms):
        term = f"{'!' * negated}({field} {operator} {value})"
        text = f"({text} {sign} {term})" if index else term

    def holds(offset: int, whence: int) -> bool:
        result = False
        for index, (field, operator, value, negated, sign) in enumerate(terms):
            one = OPERATIONS[operator](offset if field == "offset" else whence, value) != negated
            result = one if not index else (result and one) if sign == "&&" else (result or one)
        return result

    return text, holds


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(TERMS, min_size=5, max_size=12))
def test_any_combination(conditions: list[Terms]) -> None:
    pairs = [written(terms) for terms in conditions]
    everything, *found = seeks(["", *(text for text, _ in pairs)])
    for (text, holds), passed in zip(pairs, found):
        assert passed == [[o, w] for o, w in everything if holds(unsigned(o), w)], text


@given(st.text("ab*?[]!-\\", max_size=8), st.text("ab-", max_size=6))
def test_globs_are_cut_into_segments_that_say_the_same(pattern: str, text: str) -> None:
    """The segments, matched greedily, against Python's own globs (which know no backslash)."""
    pattern = pattern.replace("\\", "")
    if re.search(r"\[!?\]|\[[^\]]*$|\[[^\]]*-[^\]]*\]|\[[^\]]*\[", pattern):
        return  # where the kernel's classes and Python's are read differently
    segments = parse_glob(pattern.encode()).segments
    assert glob_holds(pattern, text) == match_segments(segments, text.encode())


def match_segments(segments: object, text: bytes) -> bool:
    """What the generated code does, in Python."""
    parts = list(segments)  # type: ignore[call-overload]

    def fits(segment: object, at: int) -> bool:
        items = list(segment)  # type: ignore[call-overload]
        if at < 0 or at + len(items) > len(text):
            return False
        for item, byte in zip(items, text[at:]):
            if isinstance(item, int):
                if item != byte:
                    return False
            elif hasattr(item, "ranges") and any(low <= byte <= high for low, high in item.ranges) == item.negated:
                return False
        return True

    if len(parts) == 1:
        return len(text) == len(parts[0]) and fits(parts[0], 0)
    end = len(text) - len(parts[-1])
    if sum(map(len, parts)) > len(text) or not fits(parts[0], 0) or not fits(parts[-1], end):
        return False
    position = len(parts[0])
    for segment in parts[1:-1]:
        places = [at for at in range(position, end - len(segment) + 1) if fits(segment, at)]
        if not places:
            return False
        position = places[0] + len(segment)
    return True

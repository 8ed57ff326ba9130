"""What the command line asks for: one record, filled from one table of flags.

Everything from the script's name on belongs to the script, up to `--`, behind which stands the
command to trace. Parsed by hand and not by argparse, whose import alone costs as much as a whole
cached run may add to the interpreter's own start.
"""

from __future__ import annotations

import os
from typing import Any, Callable, Optional, Sequence

from vm.arguments import read_size
from vm.diagnostic import Diagnostic, Refusal
from vm.named_tuple import NamedTuple


class Options(NamedTuple):
    """The whole of a command line. A named tuple: cheaper to import than a dataclass, and as frozen."""

    action: str = "run"
    """A row of ACTIONS, or what a flag such as -le turns a run into."""
    script: Optional[str] = None
    """Path of the script, `-` for standard input."""
    code: Optional[str] = None
    """The script itself, from -e."""
    arguments: tuple[str, ...] = ()
    """What follows the script; for other actions than a run, their operands."""
    command: tuple[str, ...] = ()
    """What follows `--`."""
    output: Optional[str] = None
    pid: Optional[int] = None
    cpu: Optional[int] = None
    stamp: bool = False
    verbose: bool = False
    quiet: bool = False
    duration_ns: Optional[int] = None
    dry_run: bool = False
    record: Optional[str] = None
    replay: Optional[str] = None
    backend: str = "auto"
    buffer: str = "auto"
    buffer_bytes: Optional[int] = None
    tier: str = "auto"
    fail_on_loss: bool = False
    unsafe: bool = False
    limits: tuple[tuple[str, int], ...] = ()
    """Limits that differ from their defaults: field of vm.limits.Limits and number."""
    stage: str = "bytecode"
    strip: bool = False
    pattern: Optional[str] = None
    """Operand of -le and list."""


class Flag(NamedTuple):
    """One row: how it is spelled, its operand (`[X]`: may be left out), the field it sets, a line of help."""

    spellings: tuple[str, ...]
    operand: str
    field: str
    help: str
    actions: tuple[str, ...] = ("run", "simple")
    """The actions it goes with."""
    read: Callable[[str], object] = str
    """Reads the operand; raises ValueError with what is wanted."""
    action: Optional[str] = None
    """The action it turns a run into."""
    alone: Optional[str] = None
    """The field that becomes True when the operand is left out."""


def refuse(message: str, hint: Optional[str] = None) -> Refusal:
    """Bad usage, as an exception to raise: status 2."""
    return Refusal((Diagnostic("ktap", None, message, hint),), status=2)


def read_count(text: str) -> int:
    """A number of at least 0."""
    if not (text.isascii() and text.isdigit()):
        raise ValueError("a number")
    return int(text)


UNITS_NS = {"ms": 10**6, "us": 10**3, "ns": 1, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
"""Endings of a duration; the longer ones first."""


def read_duration(text: str) -> int:
    """Seconds, or a number with a unit of UNITS_NS, in ns."""
    unit = next((unit for unit in UNITS_NS if text.endswith(unit)), "")
    digits = text[: len(text) - len(unit)]
    whole, _, part = digits.partition(".")
    if not (digits.isascii() and (whole + part).isdigit()):
        raise ValueError("a time such as 5, 0.5, 300ms or 2m")
    return int(float(digits) * UNITS_NS[unit or "s"])


def one_of(choices: Sequence[str]) -> Callable[[str], str]:
    """A reader that takes one of a few words."""

    def read(text: str) -> str:
        if text not in choices:
            raise ValueError("one of " + ", ".join(choices))
        return text

    return read


def read_pattern(text: str) -> str:
    """An operand that may be left out, so a word that looks like a flag is none."""
    if text.startswith("-"):
        raise ValueError("a name or a glob")
    return text


def read_functions(text: str) -> str:
    """A program or a library: all its functions."""
    return f"probe:{text}:*"


def read_markers(text: str) -> str:
    """The same: all its static markers."""
    return f"sdt:{text}:*"


RUNS = ("run", "simple")
SCRIPTS = ("run", "bytecode", "compile", "dump", "explain")
MADE = (*RUNS, "dump", "explain")
"""Actions that make programs for the kernel."""
BACKENDS = ("auto", "bpf", "perf")
BUFFERS = ("auto", "perf", "ring")
TIERS = ("vm", "kernel", "auto")
STAGES = ("ast", "bytecode", "llvm", "bpf", "maps")

FLAGS: tuple[Flag, ...] = (
    Flag(("-e",), "CODE", "code", "the script itself", SCRIPTS),
    Flag(("-o", "--output"), "FILE", "output", "write what the script prints to FILE", (*RUNS, "compile")),
    Flag(("-p", "--pid"), "PID", "pid", "only events of this process and its children", RUNS, read_count),
    Flag(("-C", "--cpu"), "CPU", "cpu", "only events of this processor", RUNS, read_count),
    Flag(("-T", "--stamp"), "", "stamp", "put the time of the event before each line"),
    Flag(
        ("-d",),
        "[SECONDS]",
        "duration_ns",
        "end after 5, 0.5, 300ms, 2m …; -d alone is --dry-run",
        RUNS,
        read_duration,
        alone="dry_run",
    ),
    Flag(("--duration",), "SECONDS", "duration_ns", "the same as -d SECONDS", RUNS, read_duration),
    Flag(("--dry-run",), "", "dry_run", "set the probes to see that they hold, run no handler, end"),
    Flag(("-q", "--quiet"), "", "quiet", "no `Tracing...` line; doctor: only what fails", (*RUNS, "doctor")),
    Flag(("-v", "--verbose"), "", "verbose", "say more", (*RUNS, *SCRIPTS, "list", "doctor")),
    Flag(("-s", "--simple"), "", "", "print events as they come: ktap -s [EVENT ...] [-- CMD]", action="simple"),
    Flag(("-b", "--bytecode"), "", "", "print the script's bytecode and end", ("bytecode",), action="bytecode"),
    Flag(("-le",), "[GLOB]", "pattern", "list events and end", ("list",), read_pattern, "list"),
    Flag(
        ("-lf",),
        "DSO",
        "pattern",
        "list the functions of a program or library and end",
        ("list",),
        read_functions,
        "list",
    ),
    Flag(("-lm",), "DSO", "pattern", "list its static markers and end", ("list",), read_markers, "list"),
    Flag(("--record",), "FILE", "record", "keep the events that the script's probes see in FILE"),
    Flag(("--replay",), "FILE", "replay", "take events from such a FILE, not from this machine"),
    Flag(
        ("--backend",),
        "NAME",
        "backend",
        "how events are reached: bpf, perf (without BPF) or auto",
        (*RUNS, "explain"),
        one_of(BACKENDS),
    ),
    Flag(("--buffer",), "KIND", "buffer", "how events leave the kernel: perf, ring or auto", MADE, one_of(BUFFERS)),
    Flag(("--tier",), "TIER", "tier", "where handlers run: vm, kernel or auto", RUNS, one_of(TIERS)),
    Flag(("--buffer-bytes",), "SIZE", "buffer_bytes", "size of each processor's buffer", MADE, read_size),
    Flag(("--fail-on-loss",), "", "fail_on_loss", "exit status 4 when anything was lost"),
    Flag(
        ("--unsafe",),
        "",
        "unsafe",
        "let the script call system() and signal(); probe any place in a program, and the kernel's locks",
    ),
    Flag(("--stage",), "STAGE", "stage", f"what dump prints: {', '.join(STAGES)}", ("dump",), one_of(STAGES)),
    Flag(("--strip",), "", "strip", "leave the script's text out of the compiled file", ("compile",)),
    Flag(("-V", "--version"), "", "", "print the version and end", ("version",), action="version"),
    Flag(("-h", "--help"), "", "", "print this and end", ("help",), action="help"),
)
BY_SPELLING = {spelling: flag for flag in FLAGS for spelling in flag.spellings}

ACTIONS = {
    "compile": "compile SCRIPT -o FILE [--strip]: write bytecode that ktap (or python3 -m vm) runs",
    "explain": "explain SCRIPT [ARGUMENT ...]: where each handler runs and why, and what that takes of the kernel",
    "dump": "dump [--stage ast|bytecode|llvm|bpf|maps] SCRIPT: print what is made of a script",
    "list": "list [-v] [GLOB]: events of this machine, with their fields",
    "doctor": "doctor: what works on this machine, what does not, and what to do",
    "help": "help [functions|variables|limits|NAME]: this, a table, or one function or variable",
}
"""What a first word can ask for instead of a script (a script of that name: `./list`)."""


def parse(words: Sequence[str]) -> Options:
    """The options that a command line (without the program's name) stands for. Raises Refusal, status 2."""
    own, command = list(words), ()  # type: list[str], tuple[str, ...]
    if "--" in own:
        place = own.index("--")
        own, command = own[:place], tuple(own[place + 1 :])
        if not command:
            raise refuse("no command behind --", "such as: ktap script.kp -- ls -l")
    fields: dict[str, Any] = {"command": command}
    if own and own[0] in ACTIONS:
        fields["action"] = own.pop(0)
    used, operands = _read_words(own, fields)
    options = Options(**fields, arguments=tuple(operands))
    if options.action in SCRIPTS and options.code is None:
        if not operands:
            raise refuse("no script given", "try ktap FILE.kp, ktap -e 'CODE' or ktap --help")
        if options.action == "run" and operands[0] in ACTIONS and not os.path.exists(operands[0]):
            raise refuse(f"no script {operands[0]}", f"an action comes before options: ktap {operands[0]} …")
        options = options._replace(script=operands[0], arguments=tuple(operands[1:]))
    _check(options, used)
    if options.action == "list" and options.arguments:
        options = options._replace(pattern=options.arguments[0])
    return options


def _read_words(words: list[str], fields: dict[str, Any]) -> tuple[list[tuple[str, Flag]], list[str]]:
    """Read flags into `fields`; return them as spelled, and the operands.

    When a script is to run or explained, its own arguments begin at the first word that is no flag.
    """
    used: list[tuple[str, Flag]] = []
    operands: list[str] = []
    while words:
        word = words.pop(0)
        if not word.startswith("-") or word == "-":
            operands.append(word)
            if fields.get("action", "run") in ("run", "bytecode", "explain"):
                return used, operands + words
            continue
        spelling, flag, text = _find(word)
        used.append((spelling, flag))
        if flag.action:
            fields["action"] = flag.action
        if flag.operand:
            _read_operand(spelling, flag, text, words, fields)
        elif flag.field:
            fields[flag.field] = True
    return used, operands


def _find(word: str) -> tuple[str, Flag, Optional[str]]:
    """The flag that a word spells, and the operand where the word carries it: `--name=text`, `-d5`."""
    name, equals, text = word.partition("=") if word.startswith("--") else (word, "", "")
    flag = limit_flags().get(name) if name.startswith("--max-") else BY_SPELLING.get(name)
    if flag is None and not word.startswith("--") and word[:2] in BY_SPELLING:
        name, text = word[:2], word[2:]
        flag = BY_SPELLING[name]
        equals = "glued"
    if flag is None or (equals and not flag.operand):
        raise refuse(f"unknown option {word}", _alike(name) or "see ktap --help")
    return name, flag, text if equals else None


def _read_operand(spelling: str, flag: Flag, text: Optional[str], words: list[str], fields: dict[str, Any]) -> None:
    """Set the field of a flag from its operand, which is `text` or the next word."""
    optional = flag.operand.startswith("[")
    given = text if text is not None else words[0] if words else None
    if given is None and not optional:
        raise refuse(f"{spelling} needs {flag.operand}", flag.help)
    try:
        value = flag.read(given) if given is not None else None
    except ValueError as error:
        if not optional or text is not None or _means_operand(given or ""):
            raise refuse(f"{spelling} {given}: not {error}") from None
        given = value = None
    if given is not None and text is None:
        words.pop(0)
    if given is None:
        if flag.alone:
            fields[flag.alone] = True
    elif spelling.startswith("--max-"):
        fields["limits"] = (*fields.get("limits", ()), (flag.field, value))
    else:
        fields[flag.field] = value


def _means_operand(word: str) -> bool:
    """Whether a word behind a flag whose operand may be missing is a bad one, and not the script."""
    return word[:1].isdigit() and not os.path.exists(word)


def limit_flags() -> dict[str, Flag]:
    """A flag for each limit of the sandbox."""
    from vm.limits import FLAGS

    return {
        row.name: Flag((row.name,), "N", row.field, row.help, MADE, _between(row.minimum, row.maximum)) for row in FLAGS
    }


def _between(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        number = read_size(text)
        if not least <= number <= most:
            raise ValueError(f"a number from {least} to {most}")
        return number

    return read


def _alike(name: str) -> Optional[str]:
    import difflib

    found = difflib.get_close_matches(name, [*BY_SPELLING, *limit_flags()], 1)
    return f"did you mean {found[0]}?" if found else None


def _check(options: Options, used: Sequence[tuple[str, Flag]]) -> None:
    """Refuse what does not go together."""
    for spelling, flag in used:
        if flag.action is None and options.action not in flag.actions:
            raise refuse(
                f"{spelling} does not go with ktap {options.action}", "it goes with " + ", ".join(flag.actions)
            )
    most = MOST_OPERANDS.get(options.action)
    if most is not None and len(options.arguments) > most:
        raise refuse(f"one word too many: {options.arguments[most]}", ACTIONS.get(options.action, "see ktap --help"))
    if options.command and options.action not in RUNS:
        raise refuse(f"ktap {options.action} runs no command", "leave out -- and what follows")
    if options.command and options.pid is not None:
        raise refuse("-p and -- both say which process to trace", "leave one out")
    if options.replay is not None and (options.command or options.pid is not None or options.record is not None):
        raise refuse("--replay takes its events from a file", "it does not go with -p, --record or a command")
    if options.action == "compile" and options.output is None:
        raise refuse("compile needs -o FILE", "such as: ktap compile script.kp -o script.kpc")


MOST_OPERANDS = {"compile": 0, "dump": 0, "list": 1, "doctor": 0, "help": 1, "version": 0}
"""How many words may stand behind an action and, where it takes one, its script."""

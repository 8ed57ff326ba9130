"""The ktap command: reads the command line and calls what it asks for. Imports nothing before it is needed."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Callable, Optional, Sequence

from ktap.options import ACTIONS, FLAGS, Options, limit_flags, parse, refuse
from vm.diagnostic import Refusal, printable

if TYPE_CHECKING:
    from vm.output import Output

USAGE = """\
usage: ktap [options] FILE.kp [argument ...] [-- COMMAND [argument ...]]
       ktap [options] -e 'CODE' [argument ...] [-- COMMAND [argument ...]]
       ktap ACTION ...
"""
NOTES = """\
FILE.kp may be - (standard input) or compiled. The script finds its arguments in arg[1], arg[2] …
(numbers as integers), `--name value` and `--name=value` in arg.name, its own name in arg[0].
-p and a COMMAND keep to that process, its threads and its children.
SIZE and N take K, M and G. Exit status: 0, or what the script gives exit(); 1 error in the script
or its output; 2 bad usage; 3 no privilege or kernel support; 4 loss under --fail-on-loss.
"""


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run the command and return its exit status. Nothing raised inside reaches the user as a traceback."""
    words = sys.argv[1:] if arguments is None else arguments
    verbose = "-v" in words or "--verbose" in words
    try:
        options = parse(words)
        verbose = options.verbose
        return COMMANDS[options.action](options)
    except Refusal as refusal:
        tell(refusal.render())
        return refusal.status
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        if verbose:
            raise
        tell(f"ktap: {describe(error)}")
        return 1
    except Exception as error:
        if verbose:
            raise
        tell(f"ktap: internal error: {type(error).__name__}: {error}; run again with -v and report what it prints")
        return 1


def describe(error: OSError) -> str:
    """`file: what is wrong`, in one line."""
    what = error.strerror or str(error)
    return what if error.filename is None else f"{os.fsdecode(error.filename)}: {what}"


def tell(text: str) -> None:
    """A line, or several, on standard error; nothing can be done when that is closed."""
    with suppress(OSError):
        os.write(2, printable(text).encode() + b"\n")


def say(text: str) -> int:
    """Print text that is no script's output, and return the exit status: 1 when it could not be written."""
    from vm.fault import Exit
    from vm.output import Output

    output = Output(1)
    try:
        output.write(printable(text).encode())
        output.flush()
    except Exit as ending:
        tell(f"ktap: {failure_text(output)}")
        return ending.status
    return 0


FAILURES = {
    errno.EPIPE: "its reader has gone",
    errno.ENOSPC: "the disk is full; free some space or choose another place with -o",
    errno.EDQUOT: "the disk quota is used up; choose another place with -o",
    errno.EFBIG: "the file has reached its size limit; see ulimit -f",
    errno.EBADF: "it is closed",
    errno.ETIMEDOUT: "its reader takes nothing",
}


def failure_text(output: Output) -> str:
    """Why the output has failed and what to do."""
    error = output.failure
    assert error is not None
    return f"{output.name}: {FAILURES.get(error.errno or 0, error.strerror)}"


def run(options: Options) -> int:
    """Run a script."""
    from ktap.session import run_script

    return run_script(options)


def show_bytecode(options: Options) -> int:
    """`ktap -b` and `ktap dump --stage bytecode`."""
    from ktap.session import load
    from vm.disassemble import disassemble

    return say(disassemble(load(options)))


def dump(options: Options) -> int:
    """`ktap dump`: what a stage of the compiler makes of a script."""
    if options.stage == "bytecode":
        return show_bytecode(options)
    if options.stage in ("llvm", "bpf", "maps"):
        from ktap.explain import dump as dump_kernel

        return say(dump_kernel(options))
    from compiler.parse import parse as parse_script
    from compiler.show import show
    from ktap.session import read_source
    from vm.image import is_image

    name, data = read_source(options)
    if is_image(data):
        raise refuse(f"{name} is compiled and has no syntax tree", "dump --stage bytecode shows what it has")
    return say(show(parse_script(data, name).script))


def explain(options: Options) -> int:
    """`ktap explain`."""
    from ktap.explain import explain as explain_script

    return say(explain_script(options))


def compile_script(options: Options) -> int:
    """`ktap compile`: write a script's bytecode to a file."""
    from ktap.session import load, spare_inputs
    from vm.image import dump as dump_image

    spare_inputs(options)
    program = load(options)
    image = dump_image(program._replace(source=None) if options.strip else program)
    output = options.output or ""
    try:
        with open(output, "wb") as file:
            file.write(image)
    except OSError as error:
        tell(f"ktap: cannot write {output}: {error.strerror}")
        return 1
    return 0


def list_events(options: Options) -> int:
    """`ktap list` and `ktap -le`."""
    from ktap.listing import list_events

    return say(list_events(options.pattern or "*", options.verbose))


def doctor(options: Options) -> int:
    """`ktap doctor`."""
    from ktap.doctor import report

    return report(options.quiet, say)


def version(options: Options) -> int:
    """`ktap -V`."""
    from ktap import __version__

    return say(f"ktap {__version__}\n")


def help_page(options: Options) -> int:
    """`ktap help` and `ktap -h`."""
    topic = options.arguments[0] if options.arguments else ""
    if topic in TOPICS:
        return say(TOPICS[topic]())
    rows = named_rows(topic)
    if not rows:
        hint = "there is help on " + ", ".join(name for name in TOPICS if name) + " and on every function and variable"
        raise refuse(f"no help on {topic}", hint)
    return say("\n".join(columns(rows)) + "\n")


def named_rows(name: str) -> list[tuple[str, str]]:
    """What is said of a function, of all functions of a library, or of a variable of events."""
    from vm.event import VARIABLES
    from vm.library import rows

    functions = [(row.signature, row.help) for row in rows() if name in (row.name, row.name.partition(".")[0])]
    return functions or [(row.name, row.help) for row in VARIABLES if row.name == name]


def usage() -> str:
    """The usage page, made from the tables."""
    actions = [(text.partition(": ")[0], text.partition(": ")[2]) for text in ACTIONS.values()]
    flags = [(", ".join(flag.spellings) + f" {flag.operand}".rstrip(), flag.help) for flag in FLAGS]
    limits = [(f"{flag.spellings[0]} N", flag.help) for flag in limit_flags().values()]
    return "\n".join(
        [USAGE, *columns(actions), "", "options:", *columns(flags), "", "limits:", *columns(limits), "", NOTES]
    )


def columns(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Rows of two columns, as lines."""
    return [f"  {left:<26}{right}" if len(left) < 26 else f"  {left}\n{'':28}{right}" for left, right in rows]


def functions_page() -> str:
    """The table of builtins."""
    from vm.library import rows

    return "\n".join(columns([(row.signature, row.help) for row in rows()])) + "\n"


def variables_page() -> str:
    """The table of event variables."""
    from vm.event import VARIABLES

    rows = [(row.name, row.help) for row in VARIABLES]
    return "\n".join(columns([*rows, ("args.NAME", "argument of the event, by name")])) + "\n"


def limits_page() -> str:
    """The limits and their defaults."""
    from vm.limits import Limits

    defaults = Limits()._asdict()
    rows = [(f"{flag.spellings[0]} {defaults[flag.field]}", flag.help) for flag in limit_flags().values()]
    return "\n".join(columns(rows)) + "\n"


TOPICS: dict[str, Callable[[], str]] = {
    "": usage,
    "functions": functions_page,
    "variables": variables_page,
    "limits": limits_page,
}
COMMANDS: dict[str, Callable[[Options], int]] = {
    "run": run,
    "simple": run,
    "bytecode": show_bytecode,
    "explain": explain,
    "dump": dump,
    "compile": compile_script,
    "list": list_events,
    "doctor": doctor,
    "version": version,
    "help": help_page,
}
"""What each action calls."""

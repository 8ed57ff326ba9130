"""`python3 -m vm script.kpc`: runs compiled scripts with nothing but the standard library.

Everything but live events works: the main chunk, ticks, trace_begin and trace_end.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from typing import Sequence

from vm.arguments import script_arguments, with_limit
from vm.diagnostic import Diagnostic, Refusal, printable
from vm.image import MAX_IMAGE_BYTES, is_image, load
from vm.limits import FLAGS, Limits
from vm.named_tuple import NamedTuple
from vm.program import Program
from vm.verify import verify

USAGE = """\
usage: python3 -m vm [options] SCRIPT.kpc [argument ...]

Runs a script that `ktap compile SCRIPT.kp -o SCRIPT.kpc` has made. SCRIPT.kpc may be - (standard input).
The script finds its arguments in arg[1], arg[2] …, `--name value` in arg.name.

options:
  -h, --help              this
{limits}

N takes K, M and G. Exit status: 0, or what the script gives exit(); 1 error in the script or its output;
2 bad usage; 3 the script traces live events, which takes ktap itself.
"""


class Options(NamedTuple):
    """The command line."""

    script: str
    arguments: tuple[str, ...]
    limits: Limits


def main() -> None:
    """Run the command and exit."""
    sys.exit(run(sys.argv[1:]))


def run(words: Sequence[str]) -> int:
    """Run the command and return its exit status."""
    if words[:1] in (["-h"], ["--help"]):
        rows = (f"  {flag.name + ' N':22}  {flag.help}" for flag in FLAGS)
        tell(USAGE.format(limits="\n".join(rows)), 1)
        return 0
    try:
        options = read_options(words)
        program = load(read_image(options.script), options.script)
        verify(program)
        return execute(program, options)
    except Refusal as refusal:
        tell(refusal.render() + "\n")
        return refusal.status


def tell(text: str, descriptor: int = 2) -> None:
    """Write text; nothing can be done when its reader has gone."""
    with suppress(OSError):
        os.write(descriptor, printable(text).encode())


def refuse(message: str, hint: str = "see python3 -m vm --help") -> Refusal:
    """What to raise for a wrong use of the command."""
    return Refusal([Diagnostic("vm", None, message, hint)], status=2)


def read_options(words: Sequence[str]) -> Options:
    """The command line. Raises Refusal (status 2)."""
    limits = Limits()
    rest = list(words)
    while rest and rest[0].startswith("-") and rest[0] != "-":
        name, equals, value = rest.pop(0).partition("=")
        try:
            if not equals and name in (flag.name for flag in FLAGS):
                value = rest.pop(0) if rest else ""
            limits = with_limit(limits, name, value)
        except LookupError:
            raise refuse(f"unknown option {name}") from None
        except ValueError as error:
            raise refuse(f"{name} {value}: not {error}") from None
    if not rest:
        raise refuse("which script?")
    return Options(rest[0], tuple(rest[1:]), limits)


def read_image(path: str) -> bytes:
    """The bytes of an image. Raises Refusal."""
    try:
        with open(0 if path == "-" else path, "rb") as file:
            data = file.read(MAX_IMAGE_BYTES + 1)
    except OSError as error:
        raise refuse(f"cannot read {path}: {error.strerror}") from None
    if not is_image(data):
        hint = "compile the script first: ktap compile SCRIPT.kp -o SCRIPT.kpc"
        raise Refusal([Diagnostic(path, None, "not a ktap image", hint)])
    return data


def execute(program: Program, options: Options) -> int:
    """Run a verified program and return its exit status. Raises Refusal (status 3) where it sets live probes."""
    from vm.local_host import LocalHost
    from vm.machine import Machine
    from vm.machine import Options as MachineOptions
    from vm.output import Output
    from vm.run import Run

    output = Output(1, limit_bytes=options.limits.output_bytes)
    arguments = script_arguments(options.script, options.arguments)
    machine = Machine(program, output, LocalHost(), MachineOptions(options.limits, arguments))
    running = Run(machine, None, report=lambda text: tell(text + "\n"))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: running.stop())
    try:
        outcome = running.execute()
    finally:
        output.close()
    for loss in outcome.losses:
        tell(f"vm: lost {loss.events} keys: {loss.what} ({loss.where})\n")
    if output.failure is not None:
        tell(f"vm: {output.name}: {output.failure.strerror}\n")
        return 1
    return outcome.status


if __name__ == "__main__":
    main()

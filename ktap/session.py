"""One run of a script: from its text to its exit status."""

from __future__ import annotations

import gc
import os
import re
import signal
import time
from contextlib import suppress
from types import FrameType
from typing import Optional, Sequence

from ktap import early
from ktap.child import Child
from ktap.cli import describe, failure_text, tell
from ktap.options import Options, refuse
from vm import arguments
from vm.c_types import Type, Types
from vm.diagnostic import Diagnostic, Refusal
from vm.event import Loss, Source
from vm.fault import Exit
from vm.host import Host
from vm.image import is_image
from vm.image import load as load_image
from vm.limits import Limits
from vm.machine import Machine
from vm.machine import Options as MachineOptions
from vm.names import Name
from vm.output import Output, StampedOutput
from vm.program import Program
from vm.run import TABLE_FULL, Run, RunOptions, is_own
from vm.verify import verify

TRACES = re.compile(r"\btrace\s")
"""What a script that has never run before has, if it is about events: its programs will have to be made too."""
STANDARD_INPUT, COMMAND_LINE = "(standard input)", "(command line)"
"""What diagnostics call a script that has no file."""
LOSS_STATUS = 4
RUNNING_OBJECTS = 10_000
"""While events come, so many new objects are made until Python looks for garbage among them."""


def run_script(options: Options) -> int:
    """Run a script as the options say and return the exit status. Raises Refusal."""
    if options.action == "simple":
        options = options._replace(action="run", code=simple_script(options))
    spare_inputs(options)
    program = load(options)
    if options.verbose:
        instructions = sum(len(function.code) for function in program.functions)
        notice(f"{program.source_name}: {len(program.functions)} functions, {instructions} instructions, verified")
    limits = Limits()._replace(**dict(options.limits))
    child = Child(options.command) if options.command else None
    try:
        output, machine = start(program, limits, options)
        try:
            status = trace(machine, output, child, options)
        finally:
            output.close()
    finally:
        if child is not None:
            child.stop()
    if output.failure is not None:
        tell(f"ktap: {failure_text(output)}")
        return 1
    return status


# -- the script -----------------------------------------------------------------------------------


def read_source(options: Options) -> tuple[str, bytes]:
    """What diagnostics call the script, and its text or image. Raises Refusal (status 2)."""
    if options.code is not None:
        return COMMAND_LINE, options.code.encode("utf-8", "surrogateescape")
    path = options.script or "-"
    try:
        if path == "-":
            with open(0, "rb", closefd=False) as file:
                return STANDARD_INPUT, file.read()
        with open(path, "rb") as file:
            return path, file.read()
    except OSError as error:
        what = f"standard input: {error.strerror}" if path == "-" else describe(error)
        raise refuse(f"cannot read {what}") from None


def spare_inputs(options: Options) -> None:
    """Refuse to write over what is read. Raises Refusal (status 2)."""
    for written in (options.output, options.record):
        for read in (options.script, options.replay):
            with suppress(OSError):
                if written and read and os.path.isfile(read) and os.path.samefile(written, read):
                    raise refuse(f"{written} would be written over", "it is what this run reads; choose another name")


def load(options: Options) -> Program:
    """The program that a run is about, compiled or taken from the cache, and verified. Raises Refusal."""
    name, data = read_source(options)
    if is_image(data) or name.endswith(".kpc"):
        program = load_image(data, name)
        verify(program)
        return program
    from ktap import cache

    text = data.decode("utf-8", "surrogateescape")
    found = cache.find(name, text)
    if found is None:
        if options.action == "run" and options.replay is None and options.backend != "perf" and TRACES.search(text):
            from compiler import backend

            backend.start()  # while the script is compiled
        found = compile_text(name, text)
    return found


def compile_text(name: str, text: str) -> Program:
    """Compile a script, tell its warnings, and keep what has none. Raises Refusal."""
    from compiler.compile import compile_source
    from ktap import cache

    result = compile_source(text, name)
    for warning in result.warnings:
        tell(warning.render(text))
    verify(result.program)
    if not result.warnings:
        cache.keep(name, text, result.program)
    return result.program


def simple_script(options: Options) -> str:
    """The script that `ktap -s` stands for."""
    events = ", ".join(options.arguments) or "syscalls:*"
    return f"trace {events} {{ print(cpu, tid, execname, argstr) }}"


def script_arguments(options: Options) -> dict[Name, Name]:
    """The table `arg` of a script."""
    return arguments.script_arguments(options.script or "-e", options.arguments)


# -- the run --------------------------------------------------------------------------------------


def start(program: Program, limits: Limits, options: Options) -> tuple[Output, Machine]:
    """The output and the machine of a run. Raises Refusal (status 2) when the output cannot be opened."""
    if options.output is None:
        descriptor, name = 1, "standard output"
    else:
        try:
            descriptor, name = os.open(options.output, OUTPUT_FLAGS, 0o666), options.output
        except OSError as error:
            raise refuse(f"cannot write {describe(error)}") from None
    machines: list[Machine] = []

    def stamp() -> bytes:
        return b"[%d.%06d] " % divmod(machines[0].now_ns() // 1000, 1_000_000)

    if options.stamp:
        output: Output = StampedOutput(descriptor, name, limits.output_bytes, stamp)
    else:
        output = Output(descriptor, name, limits.output_bytes)
    try:
        host, types = surroundings(options)
    except BaseException:
        output.close()
        raise
    settings = MachineOptions(limits, script_arguments(options), options.unsafe, types)
    machines.append(Machine(program, output, host, settings))
    return output, machines[0]


OUTPUT_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC


class KernelTypes:
    """The kernel's own types (see vm.c_types.Types), read when the first is asked for."""

    def find(self, name: str) -> Optional[Type]:
        """The type of a name, None where there is none or the kernel has no BTF."""
        from ktap.btf import kernel_types

        types = kernel_types()
        return None if types is None else types.find(name)


def surroundings(options: Options) -> tuple[Host, Types]:
    """What answers a script's questions about the machine, and the C types it can use. Raises Refusal."""
    if options.replay is not None:
        from ktap.replay import Recording, ReplayHost, ReplayTypes

        recording = Recording(options.replay)
        return ReplayHost(recording), ReplayTypes(recording)
    from ktap.live_host import LiveHost

    if options.record is None:
        return LiveHost(), KernelTypes()
    from ktap.recorder import Recorder, RecordingHost

    try:
        recorder = Recorder(options.record, notice)
    except OSError as error:
        status = 2 if error.filename else 1  # it cannot be opened, or not be written
        text = f"cannot write {options.record}: {error.strerror}"
        raise Refusal((Diagnostic("ktap", None, text),), status=status) from None
    return RecordingHost(LiveHost(), recorder), recorder.typed(KernelTypes())


def trace(machine: Machine, output: Output, child: Optional[Child], options: Options) -> int:
    """Run a script to its end, tell what was lost, and return the exit status."""

    started_ns = time.monotonic_ns()

    def report(text: str) -> None:
        with suppress(Exit):
            output.flush()
        tell(text)

    def begin() -> None:
        gc.set_threshold(RUNNING_OBJECTS)
        if options.verbose:
            notice(f"probes are live after {(time.monotonic_ns() - started_ns) // 1_000_000} ms")
            since_ns = early.live_ns()
            if since_ns is not None:
                notice(f"events count since {(time.monotonic_ns() - since_ns) // 1_000_000} ms: this has run before")
        if not options.quiet and options.replay is None:
            tell("Tracing... Hit Ctrl-C to end.")
        if child is not None:
            child.start()

    sourced = options.replay is not None or asks_for_events(machine.program)
    source = source_of(machine, child, options) if sourced else None
    early.drop()  # it was for another run than this one
    ended = child.ended if child is not None else None
    settings = RunOptions(options.duration_ns, options.replay is None, begin, ended, early.live_ns)
    run = Run(machine, source, settings, report)
    if options.record is not None and source is not None:
        from ktap.recorder import RecordingSource

        assert isinstance(source, RecordingSource)
        source.ended_ns = lambda: run.ended_ns
    end_on_signals(run, output)
    if options.dry_run:
        return dry_run(run, source)
    outcome = run.execute()
    with suppress(Exit):
        output.flush()
    tell_losses(outcome.losses)
    status = outcome.status & 0xFF
    if options.record is not None and not status:
        from ktap.recorder import UNWRITTEN

        status = int(any(loss.what == UNWRITTEN for loss in outcome.losses))
    if options.verbose:
        notice(f"ended after {(time.monotonic_ns() - started_ns) // 1_000_000} ms")
    return LOSS_STATUS if options.fail_on_loss and outcome.losses and not status else status


def asks_for_events(program: Program) -> bool:
    """Whether a program may set probes other than ticks, trace_begin and trace_end."""
    for function in program.functions:
        for instruction in function.code:
            operand = program.constants[instruction.b] if instruction.op in ("PROBE", "BUILTIN") else None
            if isinstance(operand, bytes):
                own = operand.startswith(b"tick-") or operand in (b"trace_begin", b"trace_end")
                if not own if instruction.op == "PROBE" else operand.startswith((b"kdebug", b"timer")):
                    return True
    return False


def source_of(machine: Machine, child: Optional[Child], options: Options) -> Source:
    """Where events come from. Raises Refusal."""
    from ktap import sources

    if options.replay is not None:
        return sources.replay_source(machine, options, notice)
    pid = None if child is None else child.held()
    if options.record is not None:
        return sources.recording_source(machine, options, pid, notice)
    return sources.machine_source(machine, options, pid, notice)


def notice(text: str) -> None:
    """Something worth knowing that is no error."""
    tell(f"ktap: {text}")


def dry_run(run: Run, source: Optional[Source]) -> int:
    """Run the main chunk, set its probes, to see that they hold, and end. Raises Refusal."""
    machine = run.machine
    run.attempt(machine.run_main)
    run.check_timers()
    if source is not None and run.going:
        try:
            source.attach([probe for probe in machine.probes if not is_own(probe)])
        finally:
            source.close()
    notice(f"dry run: {len(machine.probes)} probe{'' if len(machine.probes) == 1 else 's'} set, no handler run")
    return run.status


SAME_SIGNAL_S = 0.3
"""What comes so soon after a signal is that one again: timeout(1) sends it to a process and to its group."""
PATIENCE_S = 2
"""How long after a signal a write to a pipe that nobody reads may hold up the end."""


def end_on_signals(run: Run, output: Output) -> None:
    """Let signals end tracing; the second one ends ktap at once, as if it had no handler."""
    told: list[float] = []

    def handle(number: int, frame: Optional[FrameType]) -> None:
        now = time.monotonic()
        if told and now - told[0] < SAME_SIGNAL_S:
            return
        told.append(now)
        if len(told) > 1:
            tell("ktap: ended at once; trace_end may not have run")
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        run.stop()
        signal.signal(signal.SIGALRM, lambda *_: output.give_up(PATIENCE_S * 10**9))
        signal.setitimer(signal.ITIMER_REAL, PATIENCE_S, PATIENCE_S)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # not under nohup
        signal.signal(signal.SIGHUP, handle)


# -- what is told at the end ----------------------------------------------------------------------

MOST_LOSSES = 8
"""So many places of one kind of loss are told; the others together."""
BUFFER_REMEDY = "a larger --buffer-bytes, a filter or less output loses less"


def tell_losses(losses: Sequence[Loss]) -> None:
    """Tell what was lost, in exact numbers: kind by kind, most first."""
    for what in dict.fromkeys(loss.what for loss in losses):
        found = sorted((loss for loss in losses if loss.what == what), key=lambda loss: -loss.events)
        if len(found) > MOST_LOSSES:
            rest = found[MOST_LOSSES - 1 :]
            found[MOST_LOSSES - 1 :] = [Loss(what, f"{len(rest)} others", sum(loss.events for loss in rest))]
        for loss in found:
            tell(f"ktap: {loss_text(loss)}")
        if what.endswith("buffer full"):
            tell(f"ktap: {BUFFER_REMEDY}")


def loss_text(loss: Loss) -> str:
    """`lost 12 events: ring buffer full (sched:sched_switch)`."""
    unit = "new key" if loss.what == TABLE_FULL else "event"
    remedy = "; raise --max-entries" if loss.what == TABLE_FULL else ""
    plural = "" if loss.events == 1 else "s"
    return f"lost {loss.events} {unit}{plural}: {loss.what} ({loss.where}){remedy}"

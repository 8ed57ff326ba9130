"""Images made to do harm: random changes of good ones, each of which must run or be refused.

`python tests/hostile.py SEED FIRST LAST` makes the images FIRST … LAST of a seed, loads, verifies and
runs each under small limits, and prints how many were refused (by load, by the verifier), ran and faulted.
It ends with status 1 and says which image it was when one does anything else. The same seed and number
give the same image, so `hostile.py SEED N N` repeats a failure; with `-v` it shows the bytecode first.
"""

from __future__ import annotations

import faulthandler
import os
import resource
import sys
import traceback
from collections import Counter
from pathlib import Path
from random import Random
from typing import Callable, Optional

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from small_machine import MadeUpEvent, MadeUpHost  # noqa: E402

from compiler.compile import compile_source  # noqa: E402
from vm import machine as vm_machine  # noqa: E402
from vm.diagnostic import Refusal  # noqa: E402
from vm.disassemble import disassemble  # noqa: E402
from vm.event import VARIABLES, Probe  # noqa: E402
from vm.fault import Exit, Fault  # noqa: E402
from vm.image import INSTRUCTION, assemble, dump, load, sections  # noqa: E402
from vm.library import rows  # noqa: E402
from vm.limits import Limits  # noqa: E402
from vm.machine import Machine, Options  # noqa: E402
from vm.opcodes import BY_NAME, OPCODES, PACK  # noqa: E402
from vm.output import Output  # noqa: E402
from vm.program import Constant, Function, Instruction, Program, Span, Upvalue  # noqa: E402
from vm.verify import verify  # noqa: E402

LIMITS = Limits(
    handler_rounds=200,
    main_rounds=200,
    call_depth=20,
    table_entries=50,
    event_string_bytes=64,
    string_bytes=4096,
    memory_bytes=1 << 20,
    output_bytes=4096,
)
CALLS = 2000
"""What takes the place of the least number of calls that one run may make."""
HUNDRED_S = 20
"""No hundred images may take longer: they take a twentieth of a second as a rule."""
MEMORY_BYTES = 1 << 30
RUNS_OF_HANDLERS = 4
OUTCOMES = ("unloaded", "refused", "faulted", "ended", "ran")
"""Refused by load, refused by the verifier, ended by a fault, ended by exit(), ran to its end."""
ODD_INTEGERS = (0, 1, -1, 2, 63, 64, 255, 1 << 31, (1 << 63) - 1, -(1 << 63))
ODD_STRINGS = (
    b"",
    b"x",
    b"%d %s %99999999d",
    b"%c%x%n",
    b"\xff\0",
    b"a" * 300,
    b"pid",
    b"args.a.b",
    b"struct x { int a; }",
)
BUILTINS = tuple(row.name.encode() for row in rows())

SCRIPTS = (
    "print(1, 'two', nil, true)",
    "var t = {1, 2, x = 3, [4] = 5} for (k, v in pairs(t)) { print(k, v) } print(len(t))",
    "var n = 0 for (i = 1, 10) { if (i % 2 == 0) { continue } n += i } print(n << 3 >> 1 & 255 | 4 ^ 2, ~n, -n, !n)",
    "function fib(n) { if (n < 2) { return n } return fib(n - 1) + fib(n - 2) } print(fib(7))",
    "function f(...) { return ... } function g(a, ...) { print(a, f(...)) return f(a, ...) } print({f(1, 2, 3)}, g(4, 5))",
    "function counter() { var n = 0 return function () { n += 1 return function () { return n } } } print(counter()()())",
    "var s = '' for (i = 0; i < 20; i += 1) { s = s .. i .. ' ' } print(string.len(s), s == 'x', s < 'y', s != 1)",
    "h['a'] <<< 5 h['b'] <<< 6 h['a'] <<< 7 print(count(h['a']), sum(h['b'])) hist(h) print_hist({a = 1, b = 2})",
    "c['x'] += 2 c['x'] -= 1 c[1, 'a'] += 1 for (a, b, v in pairs(c)) { print(a, b, v) } for (k, v in sort_pairs(c)) { print(k) }",
    "trace sched:* /pid == 1/ { n[execname, pid] += 1 print(args.a.b, arg1, curtask.pid, nsecs) } tick-1s { print_hist(n) delete(n) }",
    "trace syscalls:* { if (cpu == 0) { return } s[tid] = nsecs print(stack(), argstr) } trace_end { for (k, v in pairs(s)) { print(k, v) } }",
    "var i = 0 while (true) { i += 1 if (i > 50) { break } } repeat { i -= 1 } until (i == 0) print(i / 7, i * 3)",
    "function loop(n) { if (n == 0) { return 'done' } return loop(n - 1) } print(loop(100)) var f = string.rep print(f('ab', 3))",
    "printf('%5d|%-8s|%x|%s\\n', 42, 'abc', 255, nil) print(sprintf('%c%%', 65), tostring({}), tonumber('12'))",
    "function each(t, f) { for (k, v in pairs(t)) { f(k, v) } } each({5, 6}, function (k, v) { print(k, v) }) print(string.split('a,b', ','))",
    "for (i = 10, 1, -3) { for (j = i, i + 2) { var q = function () { return i + j } print(q()) } } exit(3)",
)


class BusyEvent(MadeUpEvent):
    """An event that has something for every name."""

    def __init__(self) -> None:
        super().__init__()
        for number, variable in enumerate(VARIABLES):
            setattr(self, variable.name, f"v{number}".encode() if variable.type == "string" else number)

    def field(self, path: str) -> object:
        return len(path)

    def task(self, path: str) -> object:
        return path.encode()

    def memory(self, space: str, kind: str, address: int, size: int) -> Optional[bytes]:
        return bytes(min(size, 64))

    def stack(self, space: str, depth: int, skip: int) -> object:
        return None

    def state(self, name: str) -> object:
        return True


def seeds() -> list[Program]:
    return [compile_source(text, "hostile.kp").program for text in SCRIPTS]


# -- changes of bytes -------------------------------------------------------------------------


def flip(random: Random, data: bytes) -> bytes:
    """Some bits are others."""
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 8))):
        if changed:
            changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def overwrite(random: Random, data: bytes) -> bytes:
    """A run of bytes is another."""
    place = random.randrange(len(data) + 1)
    run = random.choice((b"\0", b"\xff", b"\x80", b"\x7f")) * random.randint(1, 8)
    return data[:place] + random.choice((run, random.randbytes(random.randint(1, 8)))) + data[place + len(run) :]


def cut(random: Random, data: bytes) -> bytes:
    """A run of bytes is missing, often that at the end."""
    start, end = sorted(random.randrange(len(data) + 1) for _ in range(2))
    return data[:start] if random.random() < 0.5 else data[:start] + data[end:]


def double(random: Random, data: bytes) -> bytes:
    """A run of bytes is there twice, perhaps elsewhere."""
    start, end = sorted(random.randrange(len(data) + 1) for _ in range(2))
    place = random.choice((end, random.randrange(len(data) + 1)))
    return data[:place] + data[start : min(end, start + 64)] + data[place:]


BYTE_CHANGES = (flip, flip, overwrite, cut, double)


def damaged(random: Random, programs: list[Program]) -> bytes:
    """Bytes of the whole image are changed: the checksum is wrong as a rule."""
    image = random.choice(BYTE_CHANGES)(random, dump(random.choice(programs)))
    return image if random.random() < 0.9 else image + dump(random.choice(programs))


def forged(random: Random, programs: list[Program]) -> bytes:
    """Bytes within a section are changed, lengths and checksum are right."""
    parts = list(sections(dump(random.choice(programs))).items())
    for _ in range(random.choice((1, 1, 2))):
        place = random.randrange(len(parts))
        tag, payload = parts[place]
        parts[place] = tag, random.choice(BYTE_CHANGES)(random, payload)
    return assemble(parts)


def rearranged(random: Random, programs: list[Program]) -> bytes:
    """Sections are missing, doubled, invented, from another image, or in another order."""
    parts = list(sections(dump(random.choice(programs))).items())
    other = list(sections(dump(random.choice(programs))).items())
    place = random.randrange(len(parts))
    kind = random.randrange(5)
    if kind == 0:
        del parts[place]
    elif kind == 1:
        parts.append(random.choice(parts))
    elif kind == 2:
        tag = random.choice((b"note", b"Ebpf", random.randbytes(4)))
        parts.insert(place, (tag, random.randbytes(random.randrange(64))))
    elif kind == 3:
        parts[place] = other[min(place, len(other) - 1)]
    random.shuffle(parts)
    return assemble(parts)


# -- changes of programs ----------------------------------------------------------------------


def operand(random: Random, program: Program, function: Function, kind: str, old: int) -> int:
    """An operand that is likely to pass for one of its kind."""
    chance = random.random()
    if chance < 0.1:
        return max(-32768, min(32767, old + random.choice((-1, 1))))
    if chance < 0.12:
        return random.randint(-32768, 32767)
    if kind == "v" and random.random() < 0.5 and program.constants:
        return ~random.randrange(len(program.constants))
    sizes = {
        "k": len(program.constants),
        "j": len(function.code),
        "u": len(function.upvalues),
        "p": len(program.functions),
        "n": 4,
    }
    most = sizes.get(kind, function.registers)
    if kind == "n" and random.random() < 0.3:
        return PACK
    return random.randrange(most) if most else 0


def changed_instruction(random: Random, program: Program, function: Function, old: Instruction) -> Instruction:
    """Another operand, or another opcode with operands of its own."""
    row = BY_NAME[old.op]
    operands = list(old[1:])
    if random.random() < 0.5 and row.operands:
        place = random.randrange(len(row.operands))
        operands[place] = operand(random, program, function, row.operands[place], operands[place])
        return Instruction(old.op, *operands)
    same = [other for other in OPCODES if other.operands == row.operands]
    if random.random() < 0.5 and len(same) > 1:
        return old._replace(op=random.choice(same).name)
    new = random.choice(OPCODES)
    return Instruction(new.name, *(operand(random, program, function, kind, 0) for kind in new.operands))


def changed_code(random: Random, program: Program, function: Function) -> Function:
    """Instructions are others, more, fewer or elsewhere."""
    code, spans = list(function.code), list(function.spans)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        place = random.randrange(len(code))
        chance = random.random()
        if chance < 0.7:
            code[place] = changed_instruction(random, program, function, code[place])
        elif chance < 0.8:
            code.insert(place, changed_instruction(random, program, function, code[place]))
            spans.insert(place, spans[place])
        elif chance < 0.9 and len(code) > 1:
            del code[place], spans[place]
        else:
            other = random.randrange(len(code))
            code[place], code[other] = code[other], code[place]
    return function._replace(code=tuple(code), spans=tuple(spans))


def changed_constant(random: Random, old: Constant) -> Constant:
    """A constant of the same type with another value, or of another type."""
    if old in BUILTINS and random.random() < 0.8:
        return random.choice(BUILTINS)
    if random.random() < 0.5 and isinstance(old, bytes):
        return flip(random, old)
    return random.choice((None, True, False, random.choice(ODD_INTEGERS), random.choice(ODD_STRINGS)))


def changed_facts(random: Random, program: Program, function: Function) -> Function:
    """What a function says of itself is something else."""
    kind = random.randrange(5)
    if kind == 0:
        return function._replace(registers=random.randint(0, 250))
    if kind == 1:
        return function._replace(parameters=random.randint(0, min(250, function.registers + 1)))
    if kind == 2:
        return function._replace(variadic=not function.variadic)
    if kind == 3:
        upvalue = Upvalue(random.random() < 0.5, random.randrange(8), "up")
        return function._replace(upvalues=(*function.upvalues[: random.randrange(3)], upvalue))
    span = Span(*(random.choice((1, 2, 80, 1 << 30)) for _ in range(4)))
    return function._replace(spans=(span,) * len(function.code))


def rewritten(random: Random, programs: list[Program]) -> bytes:
    """The program is changed, and its image is a good one."""
    program = random.choice(programs)
    functions, constants = list(program.functions), list(program.constants)
    for _ in range(random.choice((1, 1, 2))):
        place, chance = random.randrange(len(functions)), random.random()
        if chance < 0.8:
            functions[place] = changed_code(random, program, functions[place])
        elif chance < 0.88 and constants:
            at = random.randrange(len(constants))
            constants[at] = changed_constant(random, constants[at])
        elif chance < 0.96:
            functions[place] = changed_facts(random, program, functions[place])
        else:
            functions[place] = random.choice(random.choice(programs).functions)
    return dump(program._replace(functions=tuple(functions), constants=tuple(constants)))


def wandering(random: Random, programs: list[Program]) -> bytes:
    """Many small changes, of which those are kept that pass the verifier: a good program far from all scripts."""
    program = random.choice(programs)
    for _ in range(random.choice((5, 10, 20))):
        functions, constants = list(program.functions), list(program.constants)
        place = random.randrange(len(functions))
        if random.random() < 0.3 and constants:
            at = random.randrange(len(constants))
            constants[at] = changed_constant(random, constants[at])
        else:
            functions[place] = changed_code(random, program, functions[place])
        changed = program._replace(functions=tuple(functions), constants=tuple(constants))
        if passes(changed):
            program = changed
    return dump(program)


def passes(program: Program) -> bool:
    try:
        verify(program)
    except Refusal:
        return False
    return True


def random_code(random: Random, programs: list[Program]) -> bytes:
    """Whole instructions at random over the bytes of a code section, operands small."""
    parts = sections(dump(random.choice(programs)))
    code = bytearray(parts[b"Code"])
    for _ in range(random.choice((1, 2, 4))):
        place = random.randrange(len(code) // 8)
        operands = [random.randint(-4, 8) for _ in range(3)]
        INSTRUCTION.pack_into(code, 8 * place, random.randrange(len(OPCODES) + 1), 0, *operands)
    parts[b"Code"] = bytes(code)
    return assemble(list(parts.items()))


MAKERS: tuple[Callable[[Random, list[Program]], bytes], ...] = (
    damaged,
    forged,
    rearranged,
    random_code,
    *(rewritten,) * 5,
    *(wandering,) * 2,
)


def hostile_image(programs: list[Program], seed: int, number: int) -> bytes:
    random = Random(f"{seed} {number}")
    return random.choice(MAKERS)(random, programs)


# -- running them -----------------------------------------------------------------------------


def outcome(image: bytes, sink: Output) -> str:
    """What comes of an image, one of OUTCOMES."""
    try:
        program = load(image)
    except Refusal:
        return "unloaded"
    try:
        verify(program)
    except Refusal as refusal:
        refusal.render()
        return "refused"
    try:
        run(program, sink)
    except Fault as fault:
        assert fault.frames or fault.kind in ("output", "probe"), f"a fault without a place: {fault.message}"
        return "faulted"
    except Exit:
        return "ended"
    return "ran"


def run(program: Program, sink: Output) -> None:
    """The main chunk, then each handler on events and as a tick."""
    machine = Machine(program, sink, MadeUpHost(), Options(LIMITS, {0: b"hostile.kp", 1: 5}))
    machine.run_main(b"argument", 7)
    event = BusyEvent()
    probes: list[Probe] = machine.probes[:RUNS_OF_HANDLERS]
    bound = machine.bind([(event, range(len(probes)))], probes)  # type: ignore[list-item]
    machine.deliver([(1, 0), (2, 0)], bound)
    for probe in probes:
        machine.run_handler(probe.handler, probe.event)


def main(words: list[str]) -> int:
    verbose = "-v" in words
    seed, first, last = (int(word) for word in words if word != "-v")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    programs = seeds()
    counts: Counter[str] = Counter()
    null = os.open(os.devnull, os.O_WRONLY)
    vm_machine.MIN_CALLS = CALLS
    for number in range(first, last + 1):
        if number % 100 == 0:
            print(f"from image {number} of seed {seed}", file=sys.stderr, flush=True)
            faulthandler.dump_traceback_later(HUNDRED_S, exit=True)
        try:
            image = hostile_image(programs, seed, number)
            if verbose:
                show(image)
            counts[outcome(image, Output(null, "null", LIMITS.output_bytes))] += 1
        except BaseException:
            traceback.print_exc()
            print(f"repeat it by: python tests/hostile.py -v {seed} {number} {number}", file=sys.stderr)
            return 1
    print(*(f"{name}={counts[name]}" for name in OUTCOMES))
    return 0


def show(image: bytes) -> None:
    try:
        print(disassemble(load(image)))
    except Refusal as refusal:
        print(refusal.render())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

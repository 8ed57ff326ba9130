"""How fast the machine runs programs, as a ratio to CPython running the same ones.

    python3 tests/bench/vm_bench.py [ROUNDS]

Each program is run in turn with its twin, ROUNDS times (3); a ratio is that of the medians. Prints a
line a program and the geometric mean. Ends with status 1 when that is above LIMIT.
"""

from __future__ import annotations

import sys
from math import prod
from statistics import median
from time import perf_counter
from typing import Callable, List, NamedTuple

from compiler.compile import compile_source
from vm.local_host import LocalHost
from vm.machine import Machine
from vm.verify import verify

LIMIT = 12.0


class Program(NamedTuple):
    """A script that prints its answer, and a Python function that returns it."""

    name: str
    script: str
    twin: Callable[[], object]


FIB = """
function fib(n) {
    if (n < 2) { return n }
    return fib(n - 1) + fib(n - 2)
}
print(fib(27))
"""


def fib(n: int = 27) -> int:
    return n if n < 2 else fib(n - 1) + fib(n - 2)


LOOP = """
var sum = 0
for (i = 1, 10000000) { sum += i }
print(sum)
"""


def loop() -> int:
    total = 0
    for i in range(1, 10_000_001):
        total += i
    return total


TABLE = """
var t, sum = {}, 0
for (i = 0, 999999) { t[i & 8191] = i }
for (i = 0, 999999) { sum += t[i & 8191] }
print(sum)
"""


def table() -> int:
    t, total = {}, 0
    for i in range(1_000_000):
        t[i & 8191] = i
    for i in range(1_000_000):
        total += t[i & 8191]
    return total


CLOSURES = """
function counter(step) {
    var n = 0
    return function () { n += step return n }
}
var sum = 0
for (i = 1, 100000) {
    var c = counter(i)
    c()
    c()
    sum += c()
}
print(sum)
"""


def counter(step: int) -> Callable[[], int]:
    n = 0

    def count() -> int:
        nonlocal n
        n += step
        return n

    return count


def closures() -> int:
    total = 0
    for i in range(1, 100_001):
        c = counter(i)
        c()
        c()
        total += c()
    return total


STRINGS = """
var bytes, last = 0, ""
for (i = 1, 300000) {
    last = "event " .. i .. " of " .. "process"
    if (string.upper(last) != last) { bytes += len(last) }
}
print(bytes, last)
"""


def strings() -> object:
    total, last = 0, b""
    for i in range(1, 300_001):
        last = b"event " + str(i).encode() + b" of " + b"process"
        if last.upper() != last:
            total += len(last)
    return f"{total}\t{last.decode()}"


SIEVE = """
var count, rounds = 0, 0
while (rounds < 20) {
    var composite = {}
    count = 0
    for (i = 2, 16000) {
        if (composite[i] == nil) {
            count += 1
            for (j = i * i, 16000, i) { composite[j] = true }
        }
    }
    rounds += 1
}
print(count)
"""


def sieve() -> int:
    count = 0
    for _ in range(20):
        composite = {}
        count = 0
        for i in range(2, 16_001):
            if composite.get(i) is None:
                count += 1
                for j in range(i * i, 16_001, i):
                    composite[j] = True
    return count


PROGRAMS = (
    Program("fib(27)", FIB, fib),
    Program("loop of 10 million", LOOP, loop),
    Program("table, a million writes and reads", TABLE, table),
    Program("closures", CLOSURES, closures),
    Program("strings", STRINGS, strings),
    Program("sieve", SIEVE, sieve),
)


class Collected:
    """Output kept in memory."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        self.data += data

    def flush(self) -> None:
        pass


def run_script(program: Program) -> float:
    """Seconds the main chunk takes; its translation counts, compiling the script does not."""
    compiled = compile_source(program.script, program.name).program
    verify(compiled)
    machine = Machine(compiled, Collected(), LocalHost())
    start = perf_counter()
    machine.run_main()
    return perf_counter() - start


def check(program: Program) -> None:
    """Both give the same answer."""
    output = Collected()
    Machine(compile_source(program.script, program.name).program, output, LocalHost()).run_main()
    expected = f"{program.twin()}\n".encode()
    assert output.data == expected, (program.name, output.data, expected)


def run_twin(program: Program) -> float:
    """Seconds the twin takes."""
    start = perf_counter()
    program.twin()
    return perf_counter() - start


def main(rounds: int) -> int:
    """Run all; the exit status."""
    ratios: List[float] = []
    for program in PROGRAMS:
        check(program)
        pairs = [(run_script(program), run_twin(program)) for _ in range(rounds)]
        ours, theirs = median([pair[0] for pair in pairs]), median([pair[1] for pair in pairs])
        ratios.append(ours / theirs)
        print(f"{program.name:36} {ours:7.3f} s  CPython {theirs:7.3f} s  {ratios[-1]:6.2f} times")
    mean = prod(ratios) ** (1 / len(ratios))
    print(f"{'geometric mean':36} {mean:37.2f} times")
    return 0 if mean <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 3))

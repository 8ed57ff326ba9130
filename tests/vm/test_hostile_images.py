"""A hundred thousand hostile images: each runs or is refused, in bounded time and memory."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from typing import Callable

import pytest
from hostile import LIMITS, outcome

from vm.image import dump
from vm.output import Output
from vm.program import Function, Instruction, Program, Span

ROOT = Path(__file__).resolve().parent.parent.parent
IMAGES = 100_000
BATCHES = 20
SEED = 20261120


@pytest.mark.parametrize("batch", range(BATCHES))
def test_hostile_images(batch: int) -> None:
    each = IMAGES // BATCHES
    first = batch * each
    words = [sys.executable, "tests/hostile.py", str(SEED), str(first), str(first + each - 1)]
    print("seed", SEED, "images", first, "to", first + each - 1)
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]
    counts = {name: int(count) for name, count in (word.split("=") for word in done.stdout.split())}
    print(done.stdout)
    assert sum(counts.values()) == each
    least = {"unloaded": 0.1, "refused": 0.2, "faulted": 0.05, "ran": 0.05}
    assert all(counts[name] >= share * each for name, share in least.items()), (
        "the images have become too tame or too wild"
    )


# -- large ones: jumps in every disorder that the verifier lets pass ------------------------------

FIRST = 250
"""The first instruction of the tangle: all registers are set before it."""


def forward(random: Random, size: int) -> list[Instruction]:
    return [jump(random.randrange(250), random.randint(FIRST + n, FIRST + size)) for n in range(size)]


def backward(random: Random, size: int) -> list[Instruction]:
    return [jump(-1, random.randint(FIRST, FIRST + n)) for n in range(size)]


def anywhere(random: Random, size: int) -> list[Instruction]:
    return [jump(random.randrange(250), random.randint(FIRST, FIRST + size)) for n in range(size)]


def nested_loops(random: Random, size: int) -> list[Instruction]:
    half = size // 2
    heads = [Instruction("NOT", n % 250, 0) for n in range(half)]
    return heads + [jump(-1, FIRST + half - 1 - n) for n in range(half)]


def overlapping_loops(random: Random, size: int) -> list[Instruction]:
    half = size // 2
    heads = [Instruction("NOT", n % 250, 0) for n in range(half)]
    return heads + [jump(-1, FIRST + n) for n in range(half)]


def nested_branches(random: Random, size: int) -> list[Instruction]:
    half = size // 2
    return [jump(0, FIRST + size - n) for n in range(half)] + [Instruction("NOT", 1, 0)] * half


def wide_calls(random: Random, size: int) -> list[Instruction]:
    call = [Instruction("BUILTIN", 0, 2), Instruction("CALL", 0, 249, random.choice((0, 1, 250, -1)))]
    reset = [Instruction("MOVE", n, -1) for n in range(250)]
    return (call + reset) * (size // 252)


def jump(register: int, target: int) -> Instruction:
    return Instruction("JUMPIF", register, target)


@pytest.mark.parametrize("size", [300, 6_000])
@pytest.mark.parametrize(
    "tangle", [forward, backward, anywhere, nested_loops, overlapping_loops, nested_branches, wide_calls]
)
def test_large_tangles(tangle: Callable[[Random, int], list[Instruction]], size: int) -> None:
    code = [Instruction("MOVE", n, -1) for n in range(FIRST)] + tangle(Random(SEED), size)
    code.append(Instruction("RETURN", 0, 0))
    function = Function("main", 0, True, 250, (), tuple(code), (Span(1, 1, 1, 2),) * len(code))
    image = dump(Program("tangle.kp", (True, None, b"print"), (function,)))
    start = time.process_time()
    with open(os.devnull, "wb") as null:
        assert outcome(image, Output(null.fileno(), "null", LIMITS.output_bytes)) in ("ran", "faulted")
    assert time.process_time() - start < 20

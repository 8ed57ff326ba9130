"""A hundred thousand hostile images: each runs or is refused, in bounded time and memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
IMAGES = 100_000
BATCHES = 20
SEED = 20261120


@pytest.mark.parametrize("batch", range(BATCHES))
def test_hostile_images(batch: int) -> None:
    each = IMAGES // BATCHES
    first = batch * each
    words = [sys.executable, "tests/vm/hostile.py", str(SEED), str(first), str(first + each - 1)]
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

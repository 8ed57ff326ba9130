"""How long ktap takes to start, in units of `python3 -c pass`, medians of interleaved runs.

The bounds are for a script that only prints; the other rows are there to be looked at. Compiled
modules are written first, as `make` does: without them Python compiles ktap at each start.
"""

from __future__ import annotations

import compileall
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent.parent
KTAP = str(Path(sys.executable).parent / "ktap")
ROUNDS = 21
BOUNDS = {"cached": 4.0, "compiled anew": 15.0}


def commands(number: int) -> dict[str, list[str]]:
    """What is timed; `number` makes scripts that were never seen before."""
    rows = {
        "python3 -c pass": ["/usr/bin/python3", "-c", "pass"],
        "cached": [KTAP, "-e", "print(1)"],
        "compiled anew": [KTAP, "-e", f"print(1) # {os.getpid()} {number}"],
        "main chunk and tick": [KTAP, "-q", "-e", "tick-1s { } trace_begin { exit() }"],
    }
    if os.geteuid() == 0:
        attach = "n = 0 trace sched:sched_process_fork { n += 1 } tick-1ms { exit() }"
        rows["one tracepoint, attach and detach"] = [KTAP, "-q", "-e", attach]
        rows["all system calls, attach and detach"] = [
            KTAP,
            "-q",
            "-e",
            "n = 0 trace syscalls:* { n += 1 } tick-1ms { exit() }",
        ]
    return rows


def main() -> int:
    """Print the table; the status is 1 when a bound is passed."""
    for package in ("ktap", "compiler", "vm"):
        compileall.compile_dir(ROOT / package, quiet=1)
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "XDG_CACHE_HOME": cache}
        for number in range(ROUNDS):
            for name, command in commands(number).items():
                begin = time.perf_counter()
                subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
                times.setdefault(name, []).append(time.perf_counter() - begin)
    unit = median(times["python3 -c pass"])
    passed = True
    for name, found in times.items():
        ratio = median(found) / unit
        bound = BOUNDS.get(name)
        verdict = "" if bound is None else f"at most {bound:.0f}: {'yes' if ratio <= bound else 'NO'}"
        passed = passed and (bound is None or ratio <= bound)
        print(f"{name:<38}{median(found) * 1e3:8.1f} ms {ratio:6.1f}  {verdict}")
    return 0 if passed else 1


if __name__ == "__main__":
    raise SystemExit(main())

"""Drawn command lines of ktap that put everything it can into the kernel: probes of all kinds, both backends, all tiers."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random
from typing import NamedTuple

from c_program import MARKERS, compiled

from ktap import links
from tests.kills.listing import address_in

FUNCTIONS = 40
PROBED = (
    (MARKERS if os.uname().machine in ("x86_64", "aarch64") else "#define MARK(...)\nunsigned short watchers;\n")
    + "#include <stdlib.h>\n#include <unistd.h>\nvolatile long watched;\n"
    + "".join(f"__attribute__((noipa)) int each_{n}(int n) {{ return n + {n}; }}\n" for n in range(FUNCTIONS))
    + '__attribute__((noipa)) int named(const char *text) { __asm__("" ::: "memory"); return text[0]; }\n'
    + 'int main(void)\n{\n    for (int i = 0; getppid() != 1; i++) {\n        watched += named(getenv("HOME"));\n'
    + '        MARK("always", "0", "-4@%[i]", [i] "r" (i));\n'
    + '        if (watchers) { MARK("guarded", "watchers", "-4@%[i]", [i] "r" (i)); }\n'
    + "".join(f"        watched += each_{n}(i);\n" for n in range(FUNCTIONS))
    + "        usleep(2000);\n    }\n    return 0;\n}\n"
)
"""A program that calls all of its functions for ever, or until the one that started it ends."""

EVERYWHERE = {
    "tracepoints": "trace sched:sched_switch, sched:sched_process_*, signal:* { n[probename] += 1 }",
    "filters": "trace sched:sched_switch /prev_pid == 0 && next_comm ~ 'k*'/ { n[args.next_comm] += 1 }",
    "all tracepoints": "trace *:* { n[cpu] += 1 }",
    "system calls": "trace syscalls:*at /pid > 1/ { n[probename, execname] += 1 }",
    "functions": "trace probe:PROGRAM:each_* { n[probename] += 1 }",
    "returns": "trace probe:PROGRAM:each_[12]*%return { n[retval] += 1 }",
    "fetched": "trace probe:PROGRAM:named text=+0($arg1):string /text ~ '*'/ { n[args.text] += 1 }",
    "memory of functions": "trace probe:PROGRAM:named { n[user_string(arg1)] += 1 }",
    "functions of libraries": "trace probe:libc:getenv, probe:libc:mem[a-c]* { n[execname] += 1 }",
    "watchpoint": "trace watch:WATCHED:8:w { n[probename] += 1 }",
    "counters": "trace perf:page-faults, perf:cs, perf:cpu-clock:5000000 { n[probename] += 1 }",
    "profile": "profile-197hz { s[cpu] <<< 1 }",
    "stacks": "profile-97hz { n[stack(5), ustack(5)] += 1 }",
    "tick": "tick-30ms { print(1) }",
    "lines": "trace sched:sched_process_* { print(execname, probename) }",
}
BPF_ONLY = {
    "memory of system calls": "trace syscalls:sys_enter_openat { n[user_string(args.filename)] += 1 }",
    "the task": "trace sched:sched_switch { n[curtask.real_parent.pid] += 1 }",
}
"""What takes a program in the kernel, where the kernel has no event probes."""
MARKED = {
    "markers": "trace sdt:PROGRAM:* { n[probename, arg1 & 7] += 1 }",
}
"""Where the program has markers."""
KERNEL_FUNCTIONS = {
    "kernel functions": "trace probe:vfs_[rw]*, probe:tcp_v4_[cd]* { n[probename] += 1 }",
    "kernel returns": "trace probe:vfs_read%return, probe:vfs_wri*%return { n[retval] += 1 }",
    "kernel arguments": "trace probe:do_sys_openat2 dfd=%di filename=+0(%si):ustring { n[args.filename] += 1 }",
    "kernel parameters": "trace probe:vfs_read /count > 0/ { n[args.file.f_inode.i_ino] += 1 }",
}
"""Where the kernel can probe its functions."""
MOST_BLOCKS = 5
BACKENDS = ("bpf", "perf")
TIERS = ("vm", "auto", "kernel")
ENDS = ("", "trace_end { print(n0) }")
"""A script that prints nothing may be attached early, where it has run before."""


WHOM = ("everyone", "a process", "a command")
"""Who is traced."""


class Command(NamedTuple):
    """A command line, and what it was drawn from."""

    words: tuple[str, ...]
    backend: str
    tier: str
    blocks: tuple[str, ...]
    whom: str
    """One of WHOM."""

    def __str__(self) -> str:
        return f"{self.backend}, tier {self.tier}, {self.whom}: {', '.join(self.blocks)}"


def program(directory: Path) -> str:
    """Compile the program that is probed; its path."""
    return str(compiled(directory / "probed", PROBED, "-no-pie"))


def blocks(backend: str) -> dict[str, str]:
    """The blocks that this machine takes."""
    found = dict(EVERYWHERE)
    if backend == "bpf":
        found.update(BPF_ONLY)
    if os.uname().machine == "x86_64":
        found.update(MARKED)
    if links.probe_type() is not None:
        found.update(KERNEL_FUNCTIONS)
    return found


def draw(random: Random, path: str, pid: int, backend: str) -> Command:
    """A command line about a program, of which one process has a number."""
    there = blocks(backend)
    tier = random.choice(TIERS) if backend == "bpf" else "vm"
    chosen = sorted(random.sample(sorted(there), random.randint(1, MOST_BLOCKS)))
    watched = f"{address_in(path, 'watched'):#x}"
    texts = [there[name].replace("n[", f"n{number}[") for number, name in enumerate(chosen)]  # keys are of one type
    script = "\n".join(["n0 = {}", *texts, random.choice(ENDS)])
    words = ["--backend", backend, "--tier", tier]
    if backend == "bpf":
        words += ["--buffer", random.choice(("ring", "perf"))]
    words += ["-e", script.replace("PROGRAM", path).replace("WATCHED", watched)]
    whom = random.choice(WHOM)
    if whom == "a process":
        words += ["-p", str(pid)]
    if whom == "a command":
        words += ["--", path]
    return Command(tuple(words), backend, tier, tuple(chosen), whom)

"""Programs for tests of user probes, compiled where the machine has a C compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

WORK = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/wait.h>
#define KEPT __attribute__((noinline))
struct inner { int a; short b; char name[16]; unsigned flags; };
struct outer { long x; struct inner *in; unsigned char bytes[4]; const char *words[4]; };
long watched;
KEPT long work(int fd, const char *name, struct outer *o, long d, long e, long f, long g, long h)
{ asm volatile("" ::: "memory"); return fd + g + h; }
KEPT int fib(int n) { asm volatile(""); return n < 2 ? n : fib(n - 1) + fib(n - 2); }
KEPT const char *label(int n) { asm volatile(""); return n & 1 ? "odd" : "even"; }
KEPT void leaf(int n) { asm volatile("" ::: "memory"); watched = n; }
KEPT void branch_of(int n) { leaf(n); asm volatile("" ::: "memory"); }
int main(int argc, char **argv)
{
    struct inner in = { -5, 77, "inner name", 0xabcd1234 };
    struct outer o = { 9, &in, { 1, 2, 3, 4 }, { "one", "", "three", (const char *)8 } };
    int n = atoi(argv[1]);
    if (argc > 2 && !strcmp(argv[2], "fork"))
        for (int i = 0; i < 4; i++)
            if (!fork()) { for (int j = 0; j < n; j++) branch_of(j); _exit(0); }
    if (argc > 2 && !strcmp(argv[2], "exec")) { execl(argv[0], argv[0], argv[1], NULL); }
    if (argc > 2 && !strcmp(argv[2], "wait")) { for (;;) { branch_of(1); usleep(1000); } }
    if (argc > 2 && !strcmp(argv[2], "fib")) { printf("%d\n", fib(n)); return 0; }
    for (int i = 0; i < n; i++) {
        char text[32];
        sprintf(text, "path-%d", i);
        work(i, text, &o, 4, 5, 6, 70 + i, 80);
        label(i);
        branch_of(i);
    }
    while (wait(NULL) > 0) { }
    return 0;
}
"""
"""Functions whose calls are known: `program N [fork|exec|wait|fib]`."""

MARKERS = r"""
__attribute__((section(".probes"), used)) unsigned short watchers;
#define MARK(name, semaphore, operands, ...) \
    __asm__ volatile("990: nop\n" \
        ".pushsection .note.stapsdt,\"\",\"note\"\n.balign 4\n.4byte 992f-991f, 994f-993f, 3\n991: .asciz \"stapsdt\"\n" \
        "992: .balign 4\n993: .8byte 990b\n.8byte _.stapsdt.base\n.8byte " semaphore "\n" \
        ".asciz \"tested\"\n.asciz \"" name "\"\n.asciz \"" operands "\"\n994: .balign 4\n.popsection\n" :: __VA_ARGS__)
__asm__(".pushsection .stapsdt.base,\"aG\",\"progbits\",.stapsdt.base,comdat\n.weak _.stapsdt.base\n"
        ".hidden _.stapsdt.base\n_.stapsdt.base: .space 1\n.size _.stapsdt.base, 1\n.popsection\n");
"""
"""In front of a program for x86-64 or arm64: `MARK(name, semaphore, operands, ...)` is a static marker; `watchers` can be its semaphore."""

MANY = 1000
LEAVES = ("-mno-omit-leaf-frame-pointer",) if os.uname().machine in ("x86_64", "aarch64") else ()
"""Functions that call none have a frame too, so that stacks are whole."""


def many_functions() -> str:
    """A program with MANY functions, each called so often as its argument says."""
    functions = "".join(
        f'__attribute__((noinline)) int each_{n}(int n) {{ asm volatile(""); return n + {n}; }}\n' for n in range(MANY)
    )
    calls = "".join(f"s += each_{n}(i);" for n in range(MANY))
    return (
        f"#include <stdlib.h>\n{functions}"
        f"int main(int c, char **v) {{ int s = 0; for (int i = 0; i < atoi(v[1]); i++) {{ {calls} }} return s == 1; }}\n"
    )


def compiled(path: Path, text: str, *flags: str, language: str = "c") -> Path:
    """Compile a program to `path`; skips the test, with the reason, where there is no compiler."""
    compiler = shutil.which("c++" if language == "c++" else "cc")
    if compiler is None:
        pytest.skip("no C compiler (apt-get install gcc)")
    command = [compiler, "-x", language, "-O1", "-fno-omit-frame-pointer", *LEAVES, "-o", str(path), "-", *flags]
    subprocess.run(command, input=text, text=True, check=True)
    return path

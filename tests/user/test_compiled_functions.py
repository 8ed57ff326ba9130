"""Functions as compilers of several languages leave them: their names, and what probes on them would break."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from c_program import compiled
from probed import message, run
from tracing import trace

from ktap.libraries import find_file
from ktap.user_functions import find_functions, take_apart
from vm.limits import Limits

pytestmark = pytest.mark.live


def test_names_of_another_language(tmp_path: Path) -> None:
    text = """
    namespace shop { struct Till { long sum; __attribute__((noinline)) long add(long n); }; }
    long shop::Till::add(long n) { asm volatile("" ::: "memory"); return sum += n; }
    int main() { shop::Till till = {}; for (int i = 0; i < 4; i++) till.add(i); return 0; }
    """
    program = compiled(tmp_path / "till", text, language="c++")
    script = f"""
    trace "probe:{program}:shop::Till::add" {{ n[probename] += arg2 }}
    trace probe:{program}:*Till* {{ m[probename] += 1 }}
    trace_end {{ for (k, v in pairs(n)) {{ print(k, v) }} for (k, v in pairs(m)) {{ print(k, v) }} }}
    """
    assert run(script, program).lines == ["shop::Till::add(long)\t6", "shop::Till::add(long)\t4"]


def test_returns_through_which_exceptions_may_pass(tmp_path: Path) -> None:
    """A probe there would end the program; one at the function's entry is no danger."""
    text = """
    #include <stdexcept>
    #define KEPT __attribute__((noinline))
    KEPT void thrower(int n) { if (n & 1) throw std::runtime_error("x"); asm volatile(""); }
    KEPT void passed(int n) { thrower(n); asm volatile(""); }
    extern "C" KEPT int counted(int n) { asm volatile(""); return n; }
    int main() { int caught = 0; for (int n = 0; n < 6; n++) try { counted(n); passed(n); } catch (std::exception &) { caught++; } return caught - 3; }
    """
    program = compiled(tmp_path / "throws", text, language="c++")
    script = f"""
    trace probe:{program}:passed, probe:{program}:thrower {{ n[probename] += 1 }}
    trace probe:{program}:counted%return {{ n[probename] += 1 }}
    trace sched:sched_process_exit {{ if (tid == pid) {{ print(curtask.exit_code) }} }}
    trace_end {{ for (k, v in sort_pairs(n)) {{ print(k, v) }} }}
    """
    wanted = ["0", "counted\t6", "passed(int)\t6", "thrower(int)\t6"]
    assert run(script, program).lines == wanted
    told = message(f"trace probe:{program}:passed%return {{ }}")
    assert "the return of `passed(int)` is not probed" in told
    assert "--unsafe" in told
    assert "and 1 more" in message(f"trace probe:{program}:_Z*[dr]i%return {{ }}")
    assert find_functions(take_apart(f"probe:{program}:passed%return"), unsafe=True)


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the instructions are those of x86-64")
def test_instructions_that_the_kernel_takes_for_others(tmp_path: Path) -> None:
    """A probe at `vpbroadcastb` or `vxorps` would be a jump or a push to it, and the program would go wrong."""
    text = r"""
    __asm__(".text\n"
        ".globl broadcasts, clears, adds\n.type broadcasts, @function\n.type clears, @function\n.type adds, @function\n"
        "broadcasts: .byte 0x62, 0xe2, 0x7d, 0x28, 0x7a, 0xce\nret\n.size broadcasts, .-broadcasts\n"
        "clears: vxorps %xmm0, %xmm0, %xmm0\nret\n.size clears, .-clears\n"
        "adds: vpaddd %xmm0, %xmm0, %xmm0\nret\n.size adds, .-adds\n");
    int main() { return 0; }
    """
    program = compiled(tmp_path / "vectors", text)
    for name in ("broadcasts", "clears", "clears%return", "broadcast*"):
        assert "takes for another one under a probe" in message(f"trace probe:{program}:{name} {{ }}")
    names = {found.name for found in find_functions(take_apart(f"probe:{program}:*s"), unsafe=False)}
    assert "adds" in names
    assert not names & {"broadcasts", "clears"}
    assert find_functions(take_apart(f"probe:{program}:clears"), unsafe=True)


def test_every_function_of_libc_probed(tmp_path: Path) -> None:
    """A shell that has a libc of its own, all of whose functions are probed, does what it does."""
    libc = find_file("libc.so.6")
    if libc is None:
        pytest.skip("no libc.so.6")
    shutil.copy(libc, tmp_path / "libc.so.6")
    script = f"trace probe:{tmp_path}/libc.so.6:* {{ n[probename] += 1 }} trace_end {{ print(len(n) > 100) }}"
    ends = tmp_path / "ends"
    shell = f"export LD_LIBRARY_PATH={tmp_path}; {shutil.which('bash') or 'sh'} -c 'printf \"%s %d\\n\" hi 5 > {ends}; (exit 3); echo $? >> {ends}'"
    assert trace(script, ["sh", "-c", shell], limits=Limits(probes=10_000)).lines == ["true"]
    assert ends.read_text() == "hi 5\n3\n"


def test_returns_of_what_does_not_return_as_functions_do(tmp_path: Path) -> None:
    told = message("trace probe:libc:__sigsetjmp%return { }")
    assert "does not return as functions do" in told
    assert "--unsafe" in told
    names = {found.name for found in find_functions(take_apart("probe:libc:*jmp*%return"), unsafe=False)}
    assert not names & {"setjmp", "_setjmp", "__sigsetjmp"}
    program = compiled(tmp_path / "counts", "int main(int argc, char **argv) { return argc; }")
    ends = tmp_path / "ends"
    script = f"var n = 0 trace probe:{program}:*%return {{ n += 1 }} trace_end {{ print(n > 0) }}"
    assert run(script, "sh", "-c", f"{program} a b; echo $? > {ends}").lines == ["true"]
    assert ends.read_text() == "3\n"


def test_functions_of_32_bit_programs(tmp_path: Path) -> None:
    """Their calls are seen; their arguments are where the script says, for the rules of their calls are others."""
    if os.uname().machine != "x86_64" or shutil.which("ld") is None:
        pytest.skip("no linker for programs of 32 bits")
    text = """
    .globl _start, work
    .type _start, @function
    .type work, @function
    _start: push $42
        call work
        mov $1, %eax
        xor %ebx, %ebx
        int $0x80
    .size _start, .-_start
    work: nop
        ret
    .size work, .-work
    """
    subprocess.run(["as", "--32", "-o", str(tmp_path / "o"), "-"], input=text, text=True, check=True)
    program = tmp_path / "program"
    subprocess.run(["ld", "-m", "elf_i386", "-o", str(program), str(tmp_path / "o")], check=True)
    assert "of a 32-bit program is not known" in message(f"trace probe:{program}:work {{ print(arg1) }}")
    assert "+4(%sp):u32" in message(f"trace probe:{program}:work {{ print(args.arg2) }}")
    if subprocess.run([str(program)], check=False).returncode:
        pytest.skip("the kernel runs no programs of 32 bits")
    script = f"trace probe:{program}:work first=+4(%sp):u32 {{ print(probename, args.first, stringof(ustack(1))) }}"
    assert run(script, program).lines == ["work\t42\twork+0x0 [program]"]


def test_returns_in_go(tmp_path: Path) -> None:
    """Told by a section that all its programs have."""
    text = 'int f(int n) { return n; } int main() { return f(0); } const char table[8] __attribute__((section(".gopclntab"))) = "go";'
    program = compiled(tmp_path / "program", text)
    assert "is a program in Go" in message(f"trace probe:{program}:f%return {{ }}")
    assert find_functions(take_apart(f"probe:{program}:f"), unsafe=False)


def test_names_of_rust(tmp_path: Path) -> None:
    """By the symbols that its compilers give functions, of now and of before 2025."""
    text = """
    #define KEPT(symbol) __attribute__((noinline)) long symbol
    KEPT(add)(long n) __asm__("_RNvXNtC4shop4tillINtB2_4TillxEINtB2_4AddsxE3add");
    KEPT(show)(long n) __asm__("_ZN4shop4till13Till$LT$T$GT$4show17h0123456789abcdefE");
    KEPT(add)(long n) { asm volatile("" ::: "memory"); return n + 1; }
    KEPT(show)(long n) { asm volatile("" ::: "memory"); return n + 2; }
    int main() { for (int i = 0; i < 4; i++) show(add(i)); return 0; }
    """
    program = compiled(tmp_path / "shop", text)
    script = f"""
    trace probe:{program}:shop::till::Till::add {{ n[probename] += arg1 }}
    trace "probe:{program}:<shop::till::Till<i64> as shop::till::Adds<i64>>::add%return" {{ n["returned"] += retval }}
    trace probe:{program}:shop::till::* {{ m[probename] += 1 }}
    trace "probe:{program}:shop::till::Till<T>::show n=%di" {{ n["fetched"] += args.n }}
    trace_end {{ for (k, v in sort_pairs(n)) {{ print(k, v) }} for (k, v in sort_pairs(m)) {{ print(k, v) }} }}
    """
    if os.uname().machine != "x86_64":
        script = script.replace("%di", "%x0")
    added, shown = "<shop::till::Till<i64> as shop::till::Adds<i64>>::add", "shop::till::Till<T>::show"
    wanted = [f"{added}\t6", "fetched\t10", "returned\t10", f"{added}\t4", f"{shown}\t4"]
    assert run(script, program).lines == wanted
    assert "did you mean `shop::till::Till::add`?" in message(f"trace probe:{program}:shop::till::Till::ad {{ }}")

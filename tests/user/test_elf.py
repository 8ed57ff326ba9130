"""Files of programs and libraries: their functions, versions, places, and names as their programmers wrote them."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from c_program import WORK, compiled

from ktap.demangle import demangle, plain, without_arguments
from ktap.elf import Binary, NotElf, open_binary
from ktap.libraries import find_file
from ktap.markers import markers
from ktap.user_functions import NoEvent, find_functions, take_apart

NAMES = [
    ("malloc", "malloc"),
    ("_ZSt9terminatev", "std::terminate()"),
    ("_ZNKSt6vectorIiSaIiEE4sizeEv", "std::vector<int, std::allocator<int> >::size() const"),
    ("_ZN4core3fmt9Formatter9write_str17h0123456789abcdefE", "core::fmt::Formatter::write_str"),
    ("_ZN23_$LT$T$u20$as$u20$x$GT$3run17h0123456789abcdefE", "<T as x>::run"),
    ("_ZN3std2rt10lang_start28_$u7b$$u7b$closure$u7d$$u7d$17h0123456789abcdefE", "std::rt::lang_start::{{closure}}"),
    ("_ZN4core3ptr25drop$LT$Vec$LT$u8$GT$$GT$17h0123456789abcdefE", "core::ptr::drop<Vec<u8>>"),
    ("_ZN4core3foo8a$u110000$17h0123456789abcdefE", "_ZN4core3foo8a$u110000$17h0123456789abcdefE"),
    ("_RNvC5crate4main", "crate::main"),
    (
        "_RINvMs_NtC4shop4tillINtB5_4TillxE4showNCNvB7_4main0EB7_",
        "<shop::till::Till<i64>>::show::<shop::main::{closure#0}>",
    ),
    ("_RNvXNtC4shop4tillINtB2_4TillxEINtB2_4AddsxE3add", "<shop::till::Till<i64> as shop::till::Adds<i64>>::add"),
    ("_RINvC1a1fAtj3_QTaINtC1b6OptionReEEE", "a::f::<[u16; 3], &mut (i8, b::Option<&str>)>"),
    (
        "_RINvC1a1fFReEzFUKCPhEbDG_INtC1b2FnThEEp6OutputnEL_E",
        'a::f::<fn(&str) -> !, unsafe extern "C" fn(*const u8) -> bool, dyn for<\'a> b::Fn<(u8,), Output = i128>>',
    ),
    ("_RINvC1a1fKlna_Kb1_Kc78_Kj0_E", "a::f::<-10, true, 'x', 0>"),
    ("_RNvC1au8gdel_5qa", "a::gödel"),
    ("_RNCNCNCNvC1a1f00s_0B5_", "a::f::{closure#0}::{closure#0}::{closure#1}"),
    ("_RNvC1a1f.llvm.1234", "a::f"),
    ("_RNvC1aB9_", "_RNvC1aB9_"),
    ("_RNvC1a99f", "_RNvC1a99f"),
    ("_RNvNtCs1234_7mycrate3foo3bar", "mycrate::foo::bar"),
    ("_Znonsense", "_Znonsense"),
    ("_R", "_R"),
]


@pytest.mark.parametrize("mangled, wanted", NAMES)
def test_names(mangled: str, wanted: str) -> None:
    assert demangle(mangled) == wanted


PLAIN = [
    ("malloc", "malloc", "malloc"),
    ("std::terminate()", "std::terminate", "std::terminate"),
    ("int shop::add<int>(int)", "shop::add<int>", "shop::add"),
    ("std::map<int, void (*)(int)>::at(int const&) const", "std::map<int, void (*)(int)>::at", "std::map::at"),
    ("std::vector<int>::operator[](unsigned long)", "std::vector<int>::operator[]", "std::vector<int>::operator[]"),
    ("operator new(unsigned long)", "operator new", "operator new"),
    ("(anonymous namespace)::f(int)", "(anonymous namespace)::f", "(anonymous namespace)::f"),
    ("<shop::Till<i64> as shop::Adds<i64>>::add",) * 2 + ("shop::Till::add",),
    ("<[u8]>::copy_within::<usize>", "<[u8]>::copy_within::<usize>", "[u8]::copy_within"),
    ("shop::generic::<[u16; 3], fn(&str) -> !>", "shop::generic::<[u16; 3], fn(&str) -> !>", "shop::generic"),
    ("<<A as B>::C as D>::f", "<<A as B>::C as D>::f", "A::C::f"),
    ("shop::main::{closure#0}", "shop::main::{closure#0}", "shop::main::{closure#0}"),
]


@pytest.mark.parametrize("name, without_parameters, short", PLAIN)
def test_names_as_users_write_them(name: str, without_parameters: str, short: str) -> None:
    assert plain(name) == without_parameters
    assert without_arguments(without_parameters) == short


def test_names_that_are_made_to_take_long() -> None:
    """Each part refers back to the one before, twice: read in full they would fill the memory."""
    name = "_RIC1a" + "".join(f"TB{'0123456789abcdefghijklmnopqrstuvwxyz'[n]}_B_E" for n in range(30)) + "E"
    assert demangle(name) == name
    assert demangle("_R" + "I" * 5000 + "C1a") == "_R" + "I" * 5000 + "C1a"


def test_functions_are_those_that_nm_lists(work: Path) -> None:
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("no nm (apt-get install binutils)")
    listed = subprocess.run([nm, "--defined-only", str(work)], capture_output=True, text=True, check=True).stdout
    wanted = {line.split()[2]: int(line.split()[0], 16) for line in listed.splitlines() if line.split()[1] in "tT"}
    binary = open_binary(str(work))
    found = {function.name: function.address for function in binary.functions}
    for name in ("main", "work", "fib", "leaf", "branch_of", "label"):
        assert found[name] == wanted[name]
    assert set(found) <= set(wanted)


def test_places_and_addresses_are_each_others(work: Path) -> None:
    binary = open_binary(str(work))
    for function in binary.functions:
        assert binary.offset_of(function.address) == function.offset
        assert binary.address_of(function.offset) == function.address
        assert binary.function_at(function.address) is not None
    assert binary.offset_of(1 << 40) is None
    assert binary.address_of(1 << 40) is None
    middle = next(function for function in binary.functions if function.name == "work")
    assert binary.function_at(middle.address + 1) == middle


def test_the_build_id_is_that_of_the_file(tmp_path: Path) -> None:
    program = compiled(tmp_path / "program", WORK, "-Wl,--build-id=0x0123456789abcdef")
    assert open_binary(str(program)).build_id == "0123456789abcdef"


def test_symbols_in_a_file_of_their_own(tmp_path: Path) -> None:
    objcopy = shutil.which("objcopy")
    if objcopy is None:
        pytest.skip("no objcopy (apt-get install binutils)")
    program = compiled(tmp_path / "program", WORK)
    whole = {function.name for function in open_binary(str(program)).functions}
    subprocess.run([objcopy, "--only-keep-debug", str(program), str(tmp_path / "program.debug")], check=True)
    subprocess.run(
        [objcopy, "--strip-all", f"--add-gnu-debuglink={tmp_path}/program.debug", str(program), str(tmp_path / "bare")],
        check=True,
    )
    (tmp_path / ".debug").mkdir()
    assert "fib" in {function.name for function in open_binary(str(tmp_path / "bare")).functions}
    os.rename(tmp_path / "program.debug", tmp_path / ".debug" / "program.debug")
    again = tmp_path / "again"
    shutil.copy(tmp_path / "bare", again)
    assert {function.name for function in open_binary(str(again)).functions} >= whole & {"main", "fib", "leaf"}


@pytest.mark.parametrize("option", ["-Wl,--build-id", "-Wl,--build-id=none"])
def test_symbols_of_another_build_are_not_taken(tmp_path: Path, option: str) -> None:
    """Its places would be within instructions. Told by the build id, or where there is none by the checksum."""
    objcopy = shutil.which("objcopy")
    if objcopy is None:
        pytest.skip("no objcopy (apt-get install binutils)")
    for name, directory in (("one", tmp_path), ("two", tmp_path / "other")):
        directory.mkdir(exist_ok=True)
        code = f"int {name}(void) {{ return {len(directory.name)}; }} int main() {{ return {name}(); }}"
        program = compiled(directory / "program", code, option)
        subprocess.run([objcopy, "--only-keep-debug", str(program), str(directory / "program.debug")], check=True)
        link = f"--add-gnu-debuglink={directory}/program.debug"
        subprocess.run([objcopy, "--strip-all", link, str(program), str(directory / "bare")], check=True)
    assert "one" in {function.name for function in open_binary(str(tmp_path / "bare")).functions}
    shutil.copy(tmp_path / "other" / "program.debug", tmp_path / "program.debug")
    shutil.copy(tmp_path / "bare", tmp_path / "again")
    names = {function.name for function in open_binary(str(tmp_path / "again")).functions}
    assert not names & {"one", "two", "main"}


def test_a_file_that_changed_is_read_again(tmp_path: Path) -> None:
    path = compiled(tmp_path / "program", "int one(void) { return 1; } int main() { return one(); }")
    assert "one" in {function.name for function in open_binary(str(path)).functions}
    compiled(path, "int two(void) { return 1; } int main() { return two(); }")
    assert "two" in {function.name for function in open_binary(str(path)).functions}


def test_what_is_no_elf_file(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"\x7fELF but no more")
    with pytest.raises(NotElf):
        open_binary(str(tmp_path / "text"))


def test_libraries_are_found_as_the_loader_finds_them() -> None:
    libc = find_file("libc")
    if libc is None:
        pytest.skip("no libc by that name")
    assert libc == find_file("libc.so.6") or "musl" in libc
    assert find_file("sh") == os.path.realpath(shutil.which("sh") or "")
    assert find_file("nosuchlibrary") is None
    assert find_file("/nosuch/file") is None


def test_a_library_that_was_found_through_a_process_that_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file of symbols is looked for beside it, where no name leads any more."""
    monkeypatch.setattr("ktap.elf.DEBUG_ROOT", str(tmp_path))
    libc = find_file("libc.so.6")
    if libc is None:
        pytest.skip("no libc.so.6")
    with subprocess.Popen(["sleep", "60"]) as process:
        binary = Binary(f"/proc/{process.pid}/root{libc}")
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not os.path.exists(binary.path)
        assert any(function.name == "getenv" for function in binary.functions)


def test_versions_and_what_is_chosen_at_the_start() -> None:
    libc = find_file("libc.so.6")
    if libc is None:
        pytest.skip("no glibc")
    versions = {function.version for function in open_binary(libc).functions if function.name == "memcpy"}
    if len(versions) < 2:
        pytest.skip("this glibc has one memcpy")
    with pytest.raises(NoEvent, match="chosen when a program starts"):
        find_functions(take_apart("probe:libc:strlen"), unsafe=False)
    # the older one alone is a function, which no program of today calls
    with pytest.raises(NoEvent, match="`memcpy` is chosen when a program starts") as caught:
        find_functions(take_apart("probe:libc:memcpy"), unsafe=False)
    assert "memcpy@GLIBC_2.2.5" in str(caught.value.hint)
    older = find_functions(take_apart("probe:libc:memcpy@GLIBC_2.2.5"), unsafe=False)
    assert [found.name for found in older] == ["memcpy"]


def test_each_place_is_there_once() -> None:
    libc = find_file("libc")
    if libc is None:
        pytest.skip("no libc by that name")
    found = find_functions(take_apart("probe:libc:*alloc*"), unsafe=False)
    assert len({one.spot.offset for one in found}) == len(found)
    assert "malloc" in {one.name for one in found}


@pytest.mark.parametrize(
    "text, target, symbol, returns, fetch",
    [
        ("probe:libc:malloc", "libc", "malloc", False, ""),
        ("probe:/bin/x:f%return r=$retval", "/bin/x", "f", True, "r=$retval"),
        ("probe:a:ns::f(int, char*)%return", "a", "ns::f(int, char*)", True, ""),
        ("probe:a:ns::f(int, char*) x=%di +0(%si):string", "a", "ns::f(int, char*)", False, "x=%di +0(%si):string"),
        ("sdt:/bin/x:provider:name", "/bin/x", "provider:name", False, ""),
    ],
)
def test_events_are_taken_apart(text: str, target: str, symbol: str, returns: bool, fetch: str) -> None:
    written = take_apart(text)
    assert written[:4] == (target, symbol, returns, fetch)
    assert text[written.fetch_at :] == fetch


@pytest.mark.parametrize("seed", range(8))
def test_damaged_files_are_read_or_refused(work: Path, tmp_path: Path, seed: int) -> None:
    """Anybody can run such a file on a machine that is traced."""
    chance = random.Random(seed)
    data = work.read_bytes()
    sections = int.from_bytes(data[0x28:0x30], "little")
    for _ in range(25):
        damaged = bytearray(data[: chance.choice((len(data), chance.randrange(len(data))))])
        for _ in range(chance.choice((1, 2, 4, 30))):
            place = chance.choice((chance.randrange(64), chance.randrange(1000), sections + chance.randrange(2000)))
            if place < len(damaged):
                damaged[place] = chance.choice((0, 1, 255, chance.randrange(256)))
        path = tmp_path / "damaged"
        path.write_bytes(damaged)
        with suppress(NotElf):
            binary = Binary(str(path))
            assert all(binary.offset_of(function.address) is not None for function in binary.functions)
            binary.function_at(0x1139)
            markers(binary)
            binary.address_named("watched")


def test_files_that_never_end_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(NotElf, match="no plain file"):
        Binary(str(tmp_path / "fifo"))


def test_large_tables(tmp_path: Path) -> None:
    text = "".join(f".globl f{n}\n.type f{n}, @function\nf{n}: .byte 0\n.size f{n}, 1\n" for n in range(20_000))
    path = compiled(tmp_path / "many", text, "-shared", "-nostdlib", language="assembler")
    binary = Binary(str(path))
    assert len([function for function in binary.functions if function.name.startswith("f")]) == 20_000
    found = binary.functions[-1]
    assert binary.function_at(found.address) == found


def test_the_standard_library_reads_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where pyelftools is not installed, files are read by ktap.plain_elf."""
    paths = [str(find_file(name)) for name in ("libc", "python3", "bash", "libz")]
    for path in (path for path in paths if path != "None"):
        with_elftools = Binary(path)
        with monkeypatch.context() as patched:
            patched.setitem(sys.modules, "elftools.elf.elffile", None)
            patched.setitem(sys.modules, "elftools.common.exceptions", None)
            plain = Binary(path)
            assert plain.address_named("main") == with_elftools.address_named("main")
            broken = tmp_path / "broken"
            for data in (b"", b"\x7fELF", Path(path).read_bytes()[:3000]):
                broken.write_bytes(data)
                with pytest.raises(NotElf):
                    Binary(str(broken))
        for name in ("functions", "segments", "build_id", "sdt_notes", "sdt_base", "machine", "_code_ends", "throws"):
            assert getattr(plain, name) == getattr(with_elftools, name), (path, name)

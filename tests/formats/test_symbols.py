"""Names the text of events asks of the kernel: symbols as kallsyms has them, constant strings, hashes, constants."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ktap import btf, page_base
from ktap.kernel_data import KernelData
from ktap.live_host import LiveHost
from ktap.symbols import (
    LiveNames,
    SymbolTable,
    module_ends,
    read_constant_strings,
    read_table,
    with_offset,
    without_offset,
)
from ktap.tracefs import find

KALLSYMS = """\
0000000000000000 A hidden
ffffffff81000000 T _stext
ffffffff81000100 t first
ffffffff81000100 T alias
ffffffff81000200 W second
ffffffff81000300 D data
ffffffff81000400 T last
ffffffffc0000000 t $x\t[mod]
ffffffffc0000000 t inside\t[mod]
ffffffffc0000070 t $d\t[mod]
ffffffffc0000080 d state\t[mod]
"""


@pytest.fixture
def table(tmp_path: Path) -> SymbolTable:
    path = tmp_path / "kallsyms"
    path.write_text(KALLSYMS)
    return read_table(str(path))


@pytest.mark.parametrize(
    ("address", "whole", "short"),
    [
        (0xFFFFFFFF81000110, b"first+0x10/0x100", b"first"),
        (0xFFFFFFFF81000200, b"second+0x0/0x100", b"second"),
        (0xFFFFFFFF81000308, b"0xffffffff81000308", b"0xffffffff81000308"),
        (0xFFFFFFFFC0000004, b"inside+0x4/0x80 [mod]", b"inside [mod]"),
        (0xFFFFFFFFC0000084, b"state+0x4/0x0 [mod]", b"state [mod]"),
        (0x1000, b"0x1000", b"0x1000"),
        (0, b"0x0", b"0x0"),
    ],
)
def test_symbols(table: SymbolTable, address: int, whole: bytes, short: bytes) -> None:
    assert with_offset(table.find(address), address) == whole
    assert without_offset(table.find(address), address) == short


def test_a_kernel_with_all_symbols_names_data_too() -> None:
    many = [(0x10000 + 16 * n, "d", f"d{n}", "") for n in range(1000)]
    assert with_offset(SymbolTable(many).find(0x10008), 0x10008) == b"d0+0x8/0x10"
    assert SymbolTable([]).find(5) is None


def test_what_lies_behind_a_module_is_not_named_after_it() -> None:
    """On arm64 the stacks of the kernel lie there, and slots of probes before them."""
    symbols = [
        (0x10000, "t", "bpf_prog_1", " [bpf]"),
        (0x40000, "t", "last", " [mod]"),
        (0x80000, "t", "kprobe_insn_page", " [__builtin__kprobes]"),
    ]
    table = SymbolTable(symbols, {b" [mod]": 0x60000})
    assert [table.find(address) is not None for address in (0x10FFF, 0x3F000)] == [True, False]
    assert [table.find(address) is not None for address in (0x5FFFF, 0x60000)] == [True, False]
    assert table.find(0x80004) is None


def test_where_modules_end(tmp_path: Path) -> None:
    path = tmp_path / "modules"
    path.write_text(
        "nf_nat 61440 2 xt_MASQUERADE,nft_chain_nat, Live 0xffff80007a0c0000 (O)\nhidden 4096 0 - Live 0x0000\n"
    )
    assert module_ends(str(path)) == {b" [nf_nat]": 0xFFFF80007A0CF000, b" [hidden]": 4096}


def test_per_cpu_offsets_are_no_addresses() -> None:
    bounds = [(0x100, "A", "__per_cpu_end", ""), (0x1000, "T", "_stext", ""), (0x9000, "B", "_end", "")]
    table = SymbolTable([*bounds, *[(0x2000 + 16 * n, "d", f"d{n}", "") for n in range(1000)]])
    assert table.find(0x200) is None
    assert table.find(0x2008) is not None
    assert table.find(0x9008) is None


def test_constant_strings() -> None:
    text = '0xffffffff828195af : "thaw_processes"\nnonsense\n0x10 : "with \\" : in it"\n'
    assert read_constant_strings(text) == {0xFFFFFFFF828195AF: b"thaw_processes", 0x10: b'with \\" : in it'}


def test_names_without_a_kernel_to_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: KernelData) -> None:
        raise OSError(1, "no")

    monkeypatch.setattr(KernelData, "__init__", refuse)
    monkeypatch.setattr(btf, "kernel_types", lambda: None)
    names = LiveNames(lambda: str(tmp_path), str(tmp_path / "nothing"))
    assert names.symbol(0x10) == names.symbol_name(0x10) == b"0x10"
    assert names.pointer(0x10) == b"0000000000000010"
    assert names.string(0) == b"(null)"
    assert names.string(0x10) == b"(0x10)"
    assert names.constant("HRTIMER_MODE_ABS") is None
    (tmp_path / "printk_formats").write_text('0x10 : "known"\n')
    assert LiveNames(lambda: str(tmp_path)).string(0x10) == b"known"


@pytest.mark.live
def test_pointers_are_not_hashed_where_the_option_is_off(tmp_path: Path) -> None:
    (tmp_path / "options").mkdir()
    (tmp_path / "options" / "hash-ptr").write_text("0\n")
    assert LiveNames(lambda: str(tmp_path)).pointer(-1) == b"f" * 16
    (tmp_path / "options" / "hash-ptr").write_text("1\n")
    hashed = LiveNames(lambda: str(tmp_path)).pointer(0xFFFF888000001000)
    assert hashed != b"ffff888000001000"
    assert hashed.startswith(b"00000000")


@pytest.mark.live
def test_what_the_kernel_tells_of_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ktap.kernel_data.MOST_KNOWN", 2)
    data = KernelData()
    constant = read_constant_strings((Path(find().root) / "printk_formats").read_text())
    address, text = next((address, text) for address, text in constant.items() if text and b"\\" not in text)
    assert data.string(address) == text[:255]
    assert data.string(0x10) is None
    assert [data.pointer(value) for value in (0, (1 << 64) - 2)] == [b"0" * 16, b"fffffffffffffffe"]
    one, other = data.pointer(0xFFFF888000001000), data.pointer(0xFFFF888000002000)
    assert one != other
    assert data.pointer(0xFFFF888000001000) == one  # forgotten in between, the same again
    assert [data.string(n) for n in (0x20, 0x30, 0x40)] == [None] * 3
    assert data.word(0x10) is None
    assert data.word(data.task()) is not None
    data.close()
    data.close()


@pytest.mark.live
def test_constants_of_this_kernel() -> None:
    names = LiveNames(lambda: find().root)
    assert names.constant("HRTIMER_MODE_REL") == 1
    assert names.constant("TCP_ESTABLISHED") == 1
    assert names.constant("NO_SUCH_ENUMERATOR") is None
    assert names.constant("sizeof(struct page)") == 64
    assert names.constant("sizeof(struct no_such)") is None
    base = names.constant("vmemmap_base")
    if os.uname().machine == "x86_64":
        assert base is not None
        assert base % (1 << 30) == 0
        assert base >= 0xFFFF800000000000


@pytest.mark.live
def test_pages_of_this_process() -> None:
    with mmap.mmap(-1, 2 * mmap.PAGESIZE) as memory:
        memory[0] = 1
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        assert page_base.page_number(address)
        assert page_base.page_number(address + 100) == page_base.page_number(address)
    assert page_base.page_number(1 << 60) is None  # where no process has memory


@pytest.mark.live
def test_enumerators() -> None:
    types = btf.kernel_types()
    assert types is not None
    assert types.enumerator("BPF_MAP_TYPE_HASH") == 1
    assert types.enumerator("nothing_of_the_kind") is None


# -- processes ------------------------------------------------------------------------------------


def test_addresses_of_processes() -> None:
    libc = ctypes.CDLL(None)
    address = ctypes.cast(libc.getppid, ctypes.c_void_p).value
    assert address is not None
    host = LiveHost()
    name = host.user_symbol(os.getpid(), address + 1)
    assert name.split()[0] in ("getppid+0x1", "__getppid+0x1", "__GI_getppid+0x1")
    assert name.endswith("[libc.so.6]")
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"])
    try:
        assert host.user_symbol(other.pid, 0x10) == "0x10"
        assert host.user_symbol(os.getpid(), address + 1) == name
    finally:
        other.kill()
        other.wait()


def test_addresses_of_a_process_that_is_gone() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert LiveHost().user_symbol(gone.pid, -1) == "0xffffffffffffffff"

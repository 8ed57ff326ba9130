"""The cache of compiled scripts: it finds what it kept, trusts nobody, and is never the reason for an error."""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import stat
from pathlib import Path
from typing import Iterator

import pytest
from assembler import program

from ktap import cache, cache_files
from vm.image import assemble, sections
from vm.program import Program

NAME, TEXT = "a.kp", "print(1)\n"
NOBODY = 65534


def compiled(text: str = TEXT, name: str = NAME) -> Program:
    return program("RETURN 0 0", constants=(text.encode(),), source=text)._replace(source_name=name)


PROGRAM = compiled()


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the cache will be; nothing is there yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "made" / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "made" / "cache" / "ktap"


def entry(directory: Path) -> Path:
    """The only entry."""
    (only,) = directory.iterdir()
    return only


def test_it_finds_what_it_kept(directory: Path) -> None:
    assert cache.find(NAME, TEXT) is None
    assert not directory.exists()
    cache.keep(NAME, TEXT, PROGRAM)
    assert cache.find(NAME, TEXT) == PROGRAM
    assert cache.find(NAME, TEXT + " ") is None
    assert cache.find("b.kp", TEXT) is None


def test_the_text_is_kept_however_the_program_was_made() -> None:
    cache.keep(NAME, TEXT, PROGRAM._replace(source=None, source_name="x"))
    assert cache.find(NAME, TEXT) == PROGRAM


def test_bytes_that_are_no_utf8() -> None:
    name, text = "\udcff.kp", "# \udc80\n"
    cache.keep(name, text, compiled(""))
    assert cache.find(name, text) == compiled("")._replace(source_name=name, source=text)


def test_two_scripts_that_share_an_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_entry", lambda name, text: "same.kpc")
    cache.keep(NAME, TEXT, PROGRAM)
    assert cache.find(NAME, "other") is None
    cache.keep(NAME, "other", compiled("other"))
    assert cache.find(NAME, TEXT) is None
    assert cache.find(NAME, "other") == compiled("other")


def test_only_the_user_can_read_it(directory: Path) -> None:
    cache.keep(NAME, TEXT, PROGRAM)
    assert stat.S_IMODE(entry(directory).stat().st_mode) == 0o600
    for made in (directory, directory.parent, directory.parent.parent):
        assert stat.S_IMODE(made.stat().st_mode) == 0o700


@pytest.mark.parametrize("value", ["", "relative", "./x"])
def test_where_it_is_by_default(value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    cache.keep(NAME, TEXT, PROGRAM)
    assert entry(tmp_path / "home" / ".cache" / "ktap").name.endswith(".kpc")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.find(NAME, TEXT) == PROGRAM


def test_another_version_or_compiler_compiles_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.keep(NAME, TEXT, PROGRAM)
    with monkeypatch.context() as patch:
        patch.setattr(cache, "__version__", "99")
        assert cache.find(NAME, TEXT) is None
    assert cache.find(NAME, TEXT) == PROGRAM
    for package in cache.COMPILED_BY:
        (tmp_path / package / "inner").mkdir(parents=True)
    source = tmp_path / "compiler" / "inner" / "x.py"
    source.write_text("old")
    monkeypatch.setattr(cache, "ROOT", str(tmp_path))
    assert cache.find(NAME, TEXT) is None
    cache.keep(NAME, TEXT, PROGRAM)
    assert cache.find(NAME, TEXT) == PROGRAM
    source.write_text("longer")
    assert cache.find(NAME, TEXT) is None
    cache.keep(NAME, TEXT, PROGRAM)
    os.utime(source, (1, 1))
    assert cache.find(NAME, TEXT) is None


def test_ktap_run_from_an_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "ktap.pyz"
    archive.write_text("zip")
    monkeypatch.setattr(cache, "ROOT", str(archive))
    cache.keep(NAME, TEXT, PROGRAM)
    assert cache.find(NAME, TEXT) == PROGRAM
    archive.write_text("another")
    assert cache.find(NAME, TEXT) is None


def test_every_file_that_compiles_counts() -> None:
    """The compiler's sources and its grammar, and the tables of the machine, are all in what an entry is made by."""
    made_by = cache._made_by().decode()
    for path in ("compiler/grammar.lark", "compiler/tree.py", "vm/opcodes.py", "vm/library/builtin.py"):
        assert f"/{path} " in made_by


@pytest.mark.parametrize("damage", [b"", b"x", b"\x89KPC\r\n\x1a\n"])
def test_damaged_entries_are_written_again(damage: bytes, directory: Path) -> None:
    cache.keep(NAME, TEXT, PROGRAM)
    whole = entry(directory).read_bytes()
    for bad in (damage, whole[:-1], whole[:50], whole + b"x", whole[:-9] + bytes([whole[-9] ^ 4]) + whole[-8:]):
        entry(directory).write_bytes(bad)
        assert cache.find(NAME, TEXT) is None
        cache.keep(NAME, TEXT, PROGRAM)
        assert cache.find(NAME, TEXT) == PROGRAM


def test_entries_are_verified(directory: Path) -> None:
    cache.keep(NAME, TEXT, PROGRAM)
    parts = sections(entry(directory).read_bytes())
    parts[b"Code"] = b"\0\0\7\0\7\0\0\0"  # MOVE 7 7, and then no end
    entry(directory).write_bytes(assemble(list(parts.items())))
    assert cache.find(NAME, TEXT) is None


def test_a_program_too_large_for_an_image_is_not_kept(directory: Path) -> None:
    for size in (5 << 20, 17 << 20):
        cache.keep(NAME, "x" * size, PROGRAM)
        assert not directory.exists()


# -- whom it trusts ---------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o720, 0o702])
def test_a_directory_that_others_can_write(mode: int, directory: Path) -> None:
    cache.keep(NAME, TEXT, PROGRAM)
    directory.chmod(mode)
    assert cache.find(NAME, TEXT) is None


def test_an_entry_that_others_can_write(directory: Path) -> None:
    cache.keep(NAME, TEXT, PROGRAM)
    entry(directory).chmod(0o606)
    assert cache.find(NAME, TEXT) is None
    cache.keep(NAME, TEXT, PROGRAM)
    assert cache.find(NAME, TEXT) == PROGRAM


@pytest.mark.root
def test_what_belongs_to_another_user(directory: Path) -> None:
    cache.keep(NAME, TEXT, PROGRAM)
    os.chown(entry(directory), NOBODY, NOBODY)
    assert cache.find(NAME, TEXT) is None
    cache.keep(NAME, TEXT, PROGRAM)
    assert cache.find(NAME, TEXT) == PROGRAM
    os.chown(directory, NOBODY, NOBODY)
    assert cache.find(NAME, TEXT) is None
    entry(directory).unlink()
    cache.keep(NAME, TEXT, PROGRAM)
    assert list(directory.iterdir()) == []


@pytest.mark.root
def test_root_leaves_nothing_in_the_home_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "theirs"
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / ".cache"))
    cache.keep(NAME, TEXT, PROGRAM)
    assert list(home.iterdir()) == []


def test_links_are_not_followed(directory: Path, tmp_path: Path) -> None:
    cache.keep(NAME, TEXT, PROGRAM)
    name = entry(directory).name
    entry(directory).rename(tmp_path / "elsewhere")
    (directory / name).symlink_to(tmp_path / "elsewhere")
    assert cache.find(NAME, TEXT) is None
    before = (tmp_path / "elsewhere").read_bytes()
    cache.keep(NAME, TEXT, compiled("print(2)\n"))
    assert (tmp_path / "elsewhere").read_bytes() == before
    assert not (directory / name).is_symlink()
    directory.rename(tmp_path / "real")
    directory.symlink_to(tmp_path / "real")
    assert cache.find(NAME, TEXT) is None


def test_an_entry_that_is_no_file(directory: Path) -> None:
    cache.keep(NAME, TEXT, PROGRAM)
    name = entry(directory).name
    entry(directory).unlink()
    os.mkfifo(directory / name)
    assert cache.find(NAME, TEXT) is None
    (directory / name).unlink()
    (directory / name).mkdir()
    assert cache.find(NAME, TEXT) is None
    cache.keep(NAME, TEXT, PROGRAM)
    assert [path.name for path in directory.iterdir()] == [name]


# -- what can go wrong ------------------------------------------------------------------------


def test_a_file_where_the_directory_should_be(directory: Path) -> None:
    directory.parent.mkdir(parents=True)
    directory.write_text("in the way")
    cache.keep(NAME, TEXT, PROGRAM)
    assert cache.find(NAME, TEXT) is None
    assert directory.read_text() == "in the way"


def test_a_directory_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/self")
    cache.keep(NAME, TEXT, PROGRAM)
    assert cache.find(NAME, TEXT) is None


@pytest.fixture
def full_disk() -> Iterator[None]:
    """Files end after 100 bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk(full_disk: None, directory: Path) -> None:
    cache.keep(NAME, TEXT, PROGRAM)
    assert cache.find(NAME, TEXT) is None
    assert list(directory.iterdir()) == []


def test_what_a_killed_run_has_half_written_goes_an_hour_later(directory: Path) -> None:
    cache.keep(NAME, TEXT, PROGRAM)
    half, young, tables = (directory / name for name in ("a.kpc.77.5eaf", "b.kpc.78.5eaf", "grammar.json"))
    for path in (half, young, tables):
        path.touch()
    for path in (half, tables):
        os.utime(path, (1_000_000, 1_000_000))
    cache.keep(NAME, "other", compiled("other"))
    assert not half.exists()
    assert young.exists()
    assert tables.exists()  # the parser's, where they cannot be kept beside the grammar


def test_the_oldest_entries_go(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_files, "MAX_ENTRIES", 8)
    for number in range(8):
        cache.keep(NAME, str(number), compiled(str(number)))
        newest = max(directory.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        os.utime(newest, (1_000_000 + number, 1_000_000 + number))
    cache.keep(NAME, "new", compiled("new"))
    kept = [text for text in [*map(str, range(8)), "new"] if cache.find(NAME, text)]
    assert kept == ["3", "4", "5", "6", "7", "new"]


def test_the_cache_does_not_grow_past_its_size(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_files, "MAX_CACHE_BYTES", 100_000)
    for number in range(40):
        text = f"# {number:019000}\n"
        cache.keep(NAME, text, compiled(text[:9]))
        assert sum(path.stat().st_size for path in directory.iterdir()) <= 100_000
        assert cache.find(NAME, text) is not None


def test_entries_are_as_large_wherever_ktap_lies(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.keep(NAME, TEXT, PROGRAM)
    size = entry(directory).stat().st_size
    far = directory.parent / ("far" * 60)
    for package in cache.COMPILED_BY:
        shutil.copytree(Path(cache.ROOT) / package, far / package, copy_function=shutil.copy2)
    monkeypatch.setattr(cache, "ROOT", str(far))
    assert cache.find(NAME, TEXT) == PROGRAM
    cache.keep(NAME, TEXT, PROGRAM)
    assert entry(directory).stat().st_size == size


def test_an_entry_in_use_does_not_grow_old(directory: Path) -> None:
    cache.keep(NAME, TEXT, PROGRAM)
    os.utime(entry(directory), (1_000_000, 1_000_000))
    assert cache.find(NAME, TEXT) == PROGRAM
    assert entry(directory).stat().st_mtime > 1_000_000


def test_what_a_killed_ktap_left_behind_goes(directory: Path) -> None:
    cache.keep(NAME, TEXT, PROGRAM)
    old, new = directory / "a.kpc.1.1", directory / "a.kpc.2.2"
    old.write_text("half")
    new.write_text("half")
    os.utime(old, (1_000_000, 1_000_000))
    cache.keep(NAME, "other", compiled("other"))
    assert not old.exists()
    assert new.exists()


def _keep_and_find(worker: int) -> int:
    """Use a cache that only holds a few, and count what is found and wrong."""
    cache_files.MAX_ENTRIES = 6
    wrong = 0
    for round_ in range(60):
        text = str((round_ * 7 + worker) % 12)
        cache.keep(NAME, text, compiled(text))
        for other in range(12):
            found = cache.find(NAME, str(other))
            wrong += found is not None and found != compiled(str(other))
    return wrong


def test_many_at_once(directory: Path) -> None:
    with multiprocessing.get_context("fork").Pool(4) as pool:
        assert pool.map(_keep_and_find, range(4)) == [0] * 4
    assert all(path.name.endswith(".kpc") for path in directory.iterdir())

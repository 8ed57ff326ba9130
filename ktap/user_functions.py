"""Functions of programs and libraries: from what a script writes behind `probe:` to places in files.

    probe:libc:malloc              the library as the loader finds it
    probe:bash:readline%return     the program as PATH does
    probe:/lib/x.so:mall*          a glob over its functions
    probe:/lib/x.so:0x82000        a place in the file

A breakpoint in the middle of an instruction breaks the process that runs it, so only the first
instruction of a function that a symbol names is taken, unless the user says --unsafe.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase, translate
from typing import Iterable, List, Optional, Sequence, Tuple

from ktap.demangle import demangle, is_mangled, plain, spellings, without_arguments
from ktap.elf import Binary, Function, NotElf, open_binary
from ktap.libraries import find_file, known_names
from vm.named_tuple import NamedTuple

RETURN = "%return"
FETCH_BEHIND_NAME = re.compile(r"\s+(?=(\w+=)?[%$@+\\-])")
PLACE = re.compile(r"(0[xX][0-9a-fA-F]+|\d+)$")
BEHIND = re.compile(r"(.+)\+(0[xX][0-9a-fA-F]+|\d+)$")
RETURNS_ODDLY = frozenset(
    {
        *("setjmp", "_setjmp", "__setjmp", "sigsetjmp", "__sigsetjmp", "savectx"),
        *("getcontext", "__getcontext", "swapcontext", "__swapcontext", "vfork", "__vfork"),
        *("_start", "_dl_start_user", "__restore_rt", "__restore", "__start_context"),
    }
)
"""What keeps its return address to go there once more, and what nobody has called: there is something else on top of
the stack, which a probe would write over."""
NOT_CALLED = ("_dl_runtime_", "_dl_tlsdesc_")
"""How the names of more of these begin."""
WORD_BYTES = 8
PARTS = (".cold", ".part.")
"""What the compiler adds to the names of pieces of a function, which are entered by jumps and return for it."""


class Spot(NamedTuple):
    """A place to probe."""

    path: str
    offset: int
    """In the file."""
    address: int
    """As linked."""
    semaphore: int = 0
    """Where the file has the counter that says that somebody traces the marker, 0 for none."""
    starts: bool = False
    """It is a function's first instruction, at which its caller is where the architecture has it."""


class Found(NamedTuple):
    """A function that an event means."""

    name: str
    """As probename gives it."""
    spot: Spot


class Written(NamedTuple):
    """An event taken apart."""

    target: str
    symbol: str
    returns: bool
    fetch: str
    fetch_at: int
    """Where the fetch arguments start in the text."""


class NoEvent(Exception):
    """What a script asks for is not there."""

    def __init__(self, message: str, hint: Optional[str] = None) -> None:
        super().__init__(message)
        self.hint = hint


MARKERS = "sdt"


def is_user(kind: str, rest: str) -> bool:
    """Whether an event is a place in a file: `probe:libc:malloc` is, `probe:vfs_read` is not."""
    if kind != "probe":
        return kind == MARKERS
    return ":" in rest.split(None, 1)[0] if rest.strip() else False


def take_apart(text: str) -> Written:
    """`probe:TARGET:SYMBOL[%return] [FETCH ...]`, or another kind of event of that form."""
    _, _, rest = text.partition(":")
    target, _, behind = rest.partition(":")
    # names as C++ writes them have spaces in their brackets
    in_brackets = any(sign in behind.partition(" ")[0] for sign in "(<")
    gap = FETCH_BEHIND_NAME.search(behind) if in_brackets else re.search(r"\s+", behind)
    symbol, fetch = (behind[: gap.start()], behind[gap.end() :]) if gap is not None else (behind, "")
    returns = symbol.endswith(RETURN)
    symbol = symbol[: -len(RETURN)] if returns else symbol
    return Written(target, symbol.strip(), returns, fetch, len(text) - len(fetch))


SAME_NAME = re.compile(r" \(0x[0-9a-f]+\)")
"""What tells places of one name apart in labels."""


def means(text: str, label: str) -> bool:
    """Whether an event as a script writes it, a glob perhaps, means the one that has a label."""
    written, known = take_apart(text), take_apart(SAME_NAME.sub("", label))
    if (written.target, written.returns, written.fetch) != (known.target, known.returns, known.fetch):
        return False
    symbol = known.symbol
    if text.startswith(f"{MARKERS}:") and ":" not in written.symbol:
        symbol = symbol.rpartition(":")[2]
    short = plain(symbol)
    names = (symbol, short, without_arguments(short))
    return written.symbol in names or any(fnmatchcase(name, written.symbol) for name in names)


def open_target(target: str) -> Binary:
    """The file of a target. Raises NoEvent."""
    path = find_file(target)
    if path is None:
        if "/" in target:
            raise NoEvent(f"no program or library at `{target}`")
        from compiler.spell import suggest

        near = suggest(target, known_names())
        hint = f"did you mean `{near}`?" if near else "write its path, /…"
        raise NoEvent(f"no library or program `{target}`", hint)
    try:
        return open_binary(path)
    except OSError as error:
        raise NoEvent(f"cannot read {path}: {error.strerror}") from error
    except NotElf as error:
        raise NoEvent(f"`{path}` {error}") from error


def is_glob(symbol: str) -> bool:
    """Whether a symbol is a pattern; `operator*` and `f(char*)` are C++."""
    return any(sign in symbol for sign in "*?[") and not symbol.endswith(")") and "operator" not in symbol


def find_functions(written: Written, unsafe: bool) -> List[Found]:
    """The functions an event means, each place once, in the order of the file. Raises NoEvent."""
    binary = open_target(written.target)
    found = _found(binary, written, unsafe)
    if unsafe:
        return found
    found = _stepped_right(binary, found)
    return _returning(binary, found) if written.returns else found


VECTOR_PREFIXES = {0xC5: 2, 0xC4: 3, 0x62: 4}
"""VEX and EVEX: how many bytes the prefix takes, of which the opcode is behind."""
MISTAKEN = frozenset(
    {*range(0x50, 0x58), *range(0x70, 0x80), 0x90, 0x9A, 0x9D, 0xC2, 0xC3, 0xCA, 0xCB, 0xE8, 0xE9, 0xEA, 0xEB, 0xFF}
)
"""Opcodes that the kernel does not execute but imitate, or that it mends things after, whatever prefix they have: a
`vpbroadcastb` at a probe is a conditional jump to it (Linux up to 6.18 at least, arch/x86/kernel/uprobes.c,
branch_setup_ops and arch_uprobe_analyze_insn, which look at the opcode alone)."""


def _stepped_right(binary: Binary, found: List[Found]) -> List[Found]:
    """The functions whose first instruction the kernel executes as it is under a probe. Raises NoEvent."""
    if binary.machine != "x64":
        return found
    try:
        codes = binary.first_bytes([one.spot.offset for one in found], 1 + max(VECTOR_PREFIXES.values()))
    except (OSError, NotElf) as error:
        raise NoEvent(f"cannot read {binary.path}: {error}") from error
    right = [one for one, code in zip(found, codes) if not _is_mistaken(code)]
    if found and not right:
        name = found[0].name
        raise NoEvent(
            f"`{name}` begins with an instruction on vectors that the kernel takes for another one under a probe",
            "the program would go wrong; --unsafe probes it all the same",
        )
    return right


def _returns_oddly(name: str) -> bool:
    return name in RETURNS_ODDLY or name.startswith(NOT_CALLED)


def _is_mistaken(code: bytes) -> bool:
    size = VECTOR_PREFIXES.get(code[0]) if code else None
    return size is not None and len(code) > size and code[size] in MISTAKEN


def _returning(binary: Binary, found: List[Found]) -> List[Found]:
    """A probe at a return puts another address in the place of the caller's, and not every program bears that.

    Whoever unwinds the stack, as exceptions and panics do, does not find the way past it and ends the program;
    Go moves stacks and then finds an address that is not its own; setjmp gives its caller's to longjmp. What a glob
    means besides is left out. Raises NoEvent.
    """
    places = {one.spot.offset for one in found}
    again = {f.offset for f in binary.functions if f.offset in places and _returns_oddly(f.name)}
    left = [one for one in found if one.spot.offset not in again]
    if found and not left:
        message = f"the return of `{found[0].name}` is not probed: it does not return as functions do"
        raise NoEvent(message, "the program would go wrong; probe its entry, or say --unsafe")
    why = None
    if binary.moves_stacks:
        why, names = "is a program in Go, which ends when it finds the probe's address on its stack", found
    elif binary.throws:
        mangled = {f.offset for f in binary.functions if f.offset in places and is_mangled(f.name)}
        why = "throws exceptions, and one that passes through a function whose return is probed ends the program"
        names = [one for one in found if one.spot.offset in mangled]
    if why is not None and names:
        what = f"`{names[0].name}`" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
        raise NoEvent(f"the return of {what} is not probed: {binary.path} {why}", "probe its entry, or say --unsafe")
    return left


def _found(binary: Binary, written: Written, unsafe: bool) -> List[Found]:
    symbol = written.symbol
    if PLACE.match(symbol):
        return [_at_place(binary, int(symbol, 0), written.returns, unsafe)]
    found = _named(binary, symbol) if "::" in symbol or not is_glob(symbol) else []  # `<[u8]>::len` is a name
    if found:
        return found
    if is_glob(symbol):
        return _matching(binary, symbol)
    behind = BEHIND.match(symbol)
    if behind is not None and (start := _named(binary, behind[1])):
        offset = int(behind[2], 0)
        return [_at_place(binary, one.spot.offset + offset, written.returns, unsafe) for one in start]
    raise _missing(binary, symbol)


def _spot(binary: Binary, function: Function) -> Spot:
    return Spot(binary.path, function.offset, function.address, starts=binary.word_bytes == WORD_BYTES)


def _named(binary: Binary, symbol: str) -> List[Found]:
    """The functions of a name, with or without its version (`memcpy@GLIBC_2.14`); static ones may be several."""
    name, _, version = symbol.partition("@")
    version = version.lstrip("@")
    same = [f for f in binary.functions if f.name == name and (not version or f.version == version)]
    if not same and ("::" in symbol or "(" in symbol or not version):
        same = [f for f in binary.functions if is_mangled(f.name) and symbol in spellings(f.name)]
    direct = [function for function in same if not function.indirect]
    if len(direct) < len(same) and not (version and direct):
        # what an older version has for the same name, programs of today do not call
        begins = (f"__{name}_", f"{name}_")
        others = {f.name for f in binary.functions if f.name.startswith(begins) and not f.indirect}
        older = [f"{name}@{f.version}" for f in direct if f.version]
        hint = f"the file has {', '.join([*older, *sorted(others)][:6])}" if older or others else None
        raise NoEvent(f"`{name}` is chosen when a program starts: its symbol is no function to probe", hint)
    return _once(binary, direct)


def _matching(binary: Binary, pattern: str) -> List[Found]:
    match = re.compile(translate(pattern)).match
    whole = [f for f in binary.functions if not f.indirect and not any(part in f.name for part in PARTS)]
    found = [f for f in whole if match(f.name)]
    if not found or "::" in pattern:
        found += [f for f in whole if is_mangled(f.name) and any(match(name) for name in spellings(f.name))]
    if not found:
        raise NoEvent(f"no function of {binary.path} matches `{pattern}`", f"ktap -lf {binary.path} shows them")
    return _once(binary, found)


def _once(binary: Binary, functions: Iterable[Function]) -> List[Found]:
    """Each place once, under the best of its names: the one with the fewest underscores in front, then the shortest."""
    best: dict[int, Function] = {}
    for function in functions:
        other = best.get(function.offset)
        if other is None or _rank(function.name) < _rank(other.name):
            best[function.offset] = function
    return [Found(demangle(function.name), _spot(binary, function)) for function in best.values()]


def _rank(name: str) -> Tuple[int, int]:
    return len(name) - len(name.lstrip("_")), len(name)


def _at_place(binary: Binary, offset: int, returns: bool, unsafe: bool) -> Found:
    """What is at a place of the file."""
    starting = [function for function in binary.functions if function.offset == offset and not function.indirect]
    if starting:
        return _once(binary, starting)[0]
    address = binary.address_of(offset)
    if address is None:
        raise NoEvent(f"{binary.path} is not loaded at {offset:#x}: it is outside of its segments")
    if returns:
        raise NoEvent(f"no function starts at {offset:#x} of {binary.path}, so none returns")
    around = binary.function_at(address)
    if not unsafe:
        where = f"it is {address - around.address:#x} behind the start of `{around.name}`" if around is not None else ""
        hint = f"{where}; " if where else ""
        raise NoEvent(
            f"no function starts at {offset:#x} of {binary.path}",
            f"{hint}a breakpoint within an instruction breaks the program; --unsafe sets it all the same",
        )
    name = f"{demangle(around.name)}+{address - around.address:#x}" if around is not None else f"{offset:#x}"
    return Found(name, Spot(binary.path, offset, address))


def _missing(binary: Binary, symbol: str) -> NoEvent:
    from compiler.spell import suggest

    names: Sequence[str] = sorted({function.name for function in binary.functions})
    if "::" in symbol:
        names = sorted({name for mangled in names if is_mangled(mangled) for name in spellings(mangled)[1:]})
    if not binary.functions:
        return NoEvent(
            f"{binary.path} has no symbols", "a package with its debug symbols, or a probe at 0x… with --unsafe"
        )
    near = suggest(symbol, names)
    hint = f"did you mean `{near}`?" if near else f"ktap -lf {binary.path} shows its functions"
    return NoEvent(f"{binary.path} has no function `{symbol}`", hint)

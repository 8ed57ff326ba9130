"""Words of a command line as scripts and limits take them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Sequence, Union

if TYPE_CHECKING:
    from vm.limits import Limits

Word = Union[int, bytes]
SCALES = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def script_arguments(script: str, words: Sequence[str]) -> dict[Word, Word]:
    """The table `arg`: the script's name under 0, plain words from 1 on, `--name value` and `--name=value` by name.

    A `--name` that no value follows is 1.
    """
    found: dict[Word, Word] = {0: text(script)}
    waiting = list(reversed(words))
    place = 1
    while waiting:
        word = waiting.pop()
        name, equals, value = word[2:].partition("=")
        if word.startswith("--") and name:
            if not equals:
                value = waiting.pop() if waiting and not waiting[-1].startswith("--") else "1"
            found[text(name)] = argument(value)
        else:
            found[place] = argument(word)
            place += 1
    return found


def argument(word: str) -> Word:
    """A word as a script sees it: an integer where it is a decimal one of 64 bits, else a string."""
    digits = word[1:] if word.startswith("-") else word
    if digits.isascii() and digits.isdigit() and len(digits) < 20 and -(1 << 63) <= int(word) < 1 << 63:
        return int(word)
    return text(word)


def text(word: str) -> bytes:
    """A word of the command line as the bytes it was given as."""
    return word.encode("utf-8", "surrogateescape")


def read_size(word: str) -> int:
    """A number of at least 1, or with K, M or G behind it times 1024, its square or its cube. Raises ValueError."""
    scale = SCALES.get(word[-1:].upper(), 0)
    digits = word[:-1] if scale else word
    if not (digits.isascii() and digits.isdigit() and len(digits) < 20 and int(digits) > 0):
        raise ValueError("a number above 0, such as 4096, 64K or 16M")
    return int(digits) * (scale or 1)


def with_limit(limits: Limits, name: str, word: str) -> Limits:
    """The limits with what `name` (`--max-depth`) is set to. Raises LookupError for no such option, ValueError."""
    from vm.limits import FLAGS

    for flag in FLAGS:
        if flag.name == name:
            number = read_size(word)
            if not flag.minimum <= number <= flag.maximum:
                raise ValueError(f"a number from {flag.minimum} to {flag.maximum}")
            return limits._replace(**{flag.field: number})
    raise LookupError(name)

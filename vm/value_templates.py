"""Templates of what computes: moves, arithmetic, comparison. See `vm.templates` for what a template is."""

from __future__ import annotations

from typing import Callable, Dict, List, Sequence, Union

from vm.infer import ANY, BOOLEAN, INTEGERS, NIL, POSITIVE, STRING, TRUE_KINDS
from vm.layout import Branch
from vm.writer import Writer

Lines = List[str]
Template = Callable[[Writer, int, int, int], Union[Lines, Branch]]

MAX = "9223372036854775807"
MIN = "-9223372036854775808"
WORD = "18446744073709551615"


def one_line(text: str, lines: Lines) -> Lines:
    """`text` before indented lines: an `if` or `else` with its suite."""
    return [text, *("    " + line for line in lines)]


def choose(condition: str, yes: Lines, no: Lines) -> Lines:
    """`yes` where the condition holds, else `no`; just `yes` for an empty condition."""
    return one_line(f"if {condition}:", yes) + one_line("else:", no) if condition else yes


# -- values -----------------------------------------------------------------------------------


def integers(w: Writer, operands: Sequence[int]) -> str:
    """The condition under which all operands are plain integers; empty where that is known."""
    unknown = [w.value(operand) for operand in operands if w.kind(operand) not in INTEGERS]
    return " and ".join([f"type({name}) is int" for name in dict.fromkeys(unknown)])


def never_integers(w: Writer, operands: Sequence[int]) -> bool:
    """True where an operand is known to be none."""
    return any([w.kind(operand) not in (*INTEGERS, ANY) for operand in operands])


def wrapped(target: str, value: str, beyond: str = f"{{0}} > {MAX} or {{0}} < {MIN}") -> Lines:
    """`target = value` within 64 bits; `beyond` is the condition under which `{0}` is not."""
    return [f"{target} = {value}", f"if {beyond.format(target)}: {target} = wrap({target})"]


def arithmetic(slow: str, fast: Callable[[Writer, str, int, int], Lines]) -> Template:
    """A binary operator: `fast` where both sides are integers, `slow` (of vm.operators) else."""

    def template(w: Writer, a: int, b: int, c: int) -> Lines:
        target = f"r{a}"
        otherwise = [f"{target} = {slow}({w.value(b)}, {w.value(c)})"]
        if never_integers(w, (b, c)):
            return otherwise
        return choose(integers(w, (b, c)), fast(w, target, b, c), otherwise)

    return template


def added(w: Writer, target: str, b: int, c: int) -> Lines:
    """`x + y`; where one of them is above 0 the sum can pass one end only."""
    text = f"{w.value(b)} + {w.value(c)}"
    return wrapped(target, text, f"{{0}} > {MAX}") if POSITIVE in (w.kind(b), w.kind(c)) else wrapped(target, text)


def subtracted(w: Writer, target: str, b: int, c: int) -> Lines:
    """`x - y`; where y is above 0 the difference can pass one end only."""
    text = f"{w.value(b)} - {w.value(c)}"
    return wrapped(target, text, f"{{0}} < {MIN}") if w.kind(c) == POSITIVE else wrapped(target, text)


def multiplied(w: Writer, target: str, b: int, c: int) -> Lines:
    """`x * y`."""
    return wrapped(target, f"{w.value(b)} * {w.value(c)}")


def bits(operator: str) -> Callable[[Writer, str, int, int], Lines]:
    """`x operator y`, whose result never needs wrapping."""
    return lambda w, target, b, c: [f"{target} = {w.value(b)} {operator} {w.value(c)}"]


def dividing(operator: str, slow: str) -> Callable[[Writer, str, int, int], Lines]:
    """`/` and `%`: Python's operators are C's where the left side is not negative and the right one above 0."""

    def fast(w: Writer, target: str, b: int, c: int) -> Lines:
        x, y = w.value(b), w.value(c)
        known = [f"{x} >= 0" if w.kind(b) != POSITIVE else "", f"{y} > 0" if w.kind(c) != POSITIVE else ""]
        condition = " and ".join([text for text in known if text])
        quick = f"{x} {operator} {y}"
        return [f"{target} = {quick} if {condition} else {slow}({x}, {y})" if condition else f"{target} = {quick}"]

    return fast


def shifted_left(w: Writer, target: str, b: int, c: int) -> Lines:
    """`x << y`; the count is taken modulo 64."""
    return wrapped(target, f"{w.value(b)} << ({w.value(c)} & 63)")


def shifted_right(w: Writer, target: str, b: int, c: int) -> Lines:
    """`x >> y`: zeros come in."""
    return wrapped(target, f"({w.value(b)} & {WORD}) >> ({w.value(c)} & 63)")


def negate(w: Writer, a: int, b: int, c: int) -> Lines:
    """NEG."""
    return choose(integers(w, (b,)), wrapped(f"r{a}", f"-{w.value(b)}"), [f"r{a} = negate({w.value(b)})"])


def complement(w: Writer, a: int, b: int, c: int) -> Lines:
    """BITNOT."""
    return choose(integers(w, (b,)), [f"r{a} = ~{w.value(b)}"], [f"r{a} = complement({w.value(b)})"])


def move(w: Writer, a: int, b: int, c: int) -> Lines:
    """MOVE."""
    return [f"r{a} = {w.value(b)}"]


def truth(w: Writer, operand: int) -> str:
    """The condition under which an operand counts as true."""
    kind, value = w.kind(operand), w.value(operand)
    if kind in TRUE_KINDS or kind == NIL:
        return str(kind != NIL)
    return value if kind == BOOLEAN else f"{value} is not None and {value} is not False"


def falsehood(w: Writer, operand: int) -> str:
    """The condition under which an operand counts as false."""
    kind, value = w.kind(operand), w.value(operand)
    if kind in TRUE_KINDS or kind == NIL:
        return str(kind == NIL)
    return f"not {value}" if kind == BOOLEAN else f"{value} is None or {value} is False"


def logical_not(w: Writer, a: int, b: int, c: int) -> Lines:
    """NOT."""
    return [f"r{a} = {falsehood(w, b)}"]


def concatenate(w: Writer, a: int, b: int, c: int) -> Lines:
    """CONCAT; a short string is not worth charging for."""
    x, y = w.value(b), w.value(c)
    known = (STRING, *INTEGERS)
    unknown = [f"type({w.value(operand)}) is bytes" for operand in (b, c) if w.kind(operand) not in known]
    texts = [f'b"%d" % {w.value(operand)}' if w.kind(operand) in INTEGERS else w.value(operand) for operand in (b, c)]
    fast = [f"r{a} = {' + '.join(texts)}", f"if len(r{a}) > 64: built(r{a})"]
    return choose(" and ".join(unknown), fast, [f"r{a} = concatenate({x}, {y})"])


def compare_equal(operator: str, same: str, slow: str) -> Template:
    """EQ and NE: Python's `==` is right within one type, and `True == 1` the only trap across types."""

    def template(w: Writer, a: int, b: int, c: int) -> Lines:
        x, y = w.value(b), w.value(c)
        kinds = {w.kind(b), w.kind(c)}
        if NIL in kinds and ANY not in kinds:
            return [f"r{a} = {(kinds == {NIL}) == (operator == '==')}"]
        if NIL in kinds or kinds == {BOOLEAN}:
            return [f"r{a} = {x} {same} {y}"]
        if STRING in kinds or kinds <= set(INTEGERS) or w.beyond_booleans(b) or w.beyond_booleans(c):
            return [f"r{a} = {x} {operator} {y}"]
        return [f"r{a} = {x} {operator} {y} if type({x}) is type({y}) else {slow}({x}, {y})"]

    return template


def compare_order(operator: str, slow: str) -> Template:
    """LT and LE."""

    def template(w: Writer, a: int, b: int, c: int) -> Lines:
        x, y = w.value(b), w.value(c)
        if w.kind(b) == w.kind(c) == STRING:
            return [f"r{a} = {x} {operator} {y}"]
        if never_integers(w, (b, c)):
            return [f"r{a} = {slow}({x}, {y})"]
        return choose(integers(w, (b, c)), [f"r{a} = {x} {operator} {y}"], [f"r{a} = {slow}({x}, {y})"])

    return template


VALUE_TEMPLATES: Dict[str, Template] = {
    "MOVE": move,
    "NOT": logical_not,
    "NEG": negate,
    "BITNOT": complement,
    "ADD": arithmetic("add", added),
    "SUB": arithmetic("subtract", subtracted),
    "MUL": arithmetic("multiply", multiplied),
    "DIV": arithmetic("divide", dividing("//", "divide")),
    "MOD": arithmetic("modulo", dividing("%", "modulo")),
    "BAND": arithmetic("bit_and", bits("&")),
    "BOR": arithmetic("bit_or", bits("|")),
    "BXOR": arithmetic("bit_xor", bits("^")),
    "SHL": arithmetic("shift_left", shifted_left),
    "SHR": arithmetic("shift_right", shifted_right),
    "CONCAT": concatenate,
    "EQ": compare_equal("==", "is", "equal"),
    "NE": compare_equal("!=", "is not", "not equal"),
    "LT": compare_order("<", "less"),
    "LE": compare_order("<=", "less_equal"),
}
"""The templates of opcodes that compute a value from values."""

"""The templates: what each opcode is in Python. This table is the interpreter.

A template is given the `Writer` of the function (which knows registers, constants and kinds) and the
instruction's operands, and returns lines of Python, or the `Branch` a block ends with. In the lines

    r0 r1 …     are the registers, u0 u1 … the boxes of the upvalues (a box is a list of one),
    c0 g0 f0 …  constant string 0, the global and the builtin that it names,
    make0 …     the makers of closures, d the depth of this call, rest the arguments behind `...`,
    x           holds nothing from one instruction to the next,
    E           the current event,

and all other names are those of `vm.operators`, `vm.values` and `Machine.names`.
"""

from __future__ import annotations

from typing import Dict, List

from vm.infer import ANY, FUNCTION, INTEGERS, NIL, POSITIVE, STRING, TABLE, TRUE_KINDS
from vm.layout import Branch
from vm.opcodes import PACK
from vm.value_templates import (
    MAX,
    MIN,
    VALUE_TEMPLATES,
    Lines,
    Template,
    choose,
    falsehood,
    integers,
    never_integers,
    truth,
)
from vm.writer import Writer

# -- control ----------------------------------------------------------------------------------


def jump(w: Writer, a: int, b: int, c: int) -> Lines:
    """JUMP: the layout goes there."""
    return []


def jump_if(w: Writer, a: int, b: int, c: int) -> Branch:
    """JUMPIF."""
    return Branch(truth(w, a), falsehood(w, a))


def jump_if_not(w: Writer, a: int, b: int, c: int) -> Branch:
    """JUMPIFNOT."""
    return Branch(falsehood(w, a), truth(w, a))


def past(w: Writer, value: str, first: int) -> str:
    """The condition under which `value` is still to be counted by the loop whose registers begin at `first`."""
    if w.kind(first + 2) == POSITIVE:
        return f"{value} <= r{first + 1}"
    return f"({value} <= r{first + 1} if r{first + 2} > 0 else {value} >= r{first + 1})"


def begin_counting(w: Writer, a: int, b: int, c: int) -> Branch:
    """FORPREP."""
    registers = f"r{a}, r{a + 1}, r{a + 2}"
    if integers(w, (a, a + 1)) or w.kind(a + 2) != POSITIVE:
        w.lines.append(f"{registers} = loop_bounds({registers})")
    goes_on = past(w, f"r{a}", a)
    return Branch(f"not {goes_on}", goes_on, on_fall=(f"r{a + 3} = r{a}",))


def count(w: Writer, a: int, b: int, c: int) -> Branch:
    """FORLOOP. The sum may be beyond 64 bits, then it is past the end too."""
    w.lines.append(f"x = r{a} + r{a + 2}")
    goes_on = past(w, "x", a)
    return Branch(goes_on, f"not {goes_on}", on_jump=(f"r{a} = r{a + 3} = x",))


def begin_iterating(w: Writer, a: int, b: int, c: int) -> Lines:
    """ITERPREP."""
    return [f"r{a} = prepare_iterator(r{b}, r{b + 1}, r{b + 2})"]


def iterate(w: Writer, a: int, b: int, c: int) -> Branch:
    """ITERNEXT; a key and a value of a table are taken from Python's own iterator."""
    names = ", ".join([f"r{a + 1 + n}" for n in range(b)])
    w.lines.extend((f"x = next_entry(d + 1, r{a}, {b})",))
    if b == 2:
        w.lines[-1:] = [f"if type(r{a}) is list_iterator:", f"    x = next(r{a}, None)", "else:", "    " + w.lines[-1]]
    unpack = (f"{names}{',' if b == 1 else ''} = x",) if b else ()
    return Branch("x is None", "x is not None", on_fall=unpack)


# -- variables --------------------------------------------------------------------------------


def get_global(w: Writer, a: int, b: int, c: int) -> Lines:
    """GETGLOBAL."""
    return [f"r{a} = {w.global_name(b)}"]


def set_global(w: Writer, a: int, b: int, c: int) -> Lines:
    """SETGLOBAL."""
    name = w.global_name(a)
    w.assigned.add(name)
    return [f"{name} = {w.value(b)}"]


def fill(text: str) -> Template:
    """A template that is one line: `{a}` and so on stand for operands, `{x}` `{y}` `{z}` for their values."""

    def template(w: Writer, a: int, b: int, c: int) -> Lines:
        values = {}
        for place, (name, operand) in zip("abc", (("x", a), ("y", b), ("z", c))):
            if "{" + name + "}" in text:
                values[name] = w.value(operand)
            values[place] = str(operand)
        return [text.format(**values)]

    return template


# -- tables -----------------------------------------------------------------------------------


def is_table(w: Writer, table: int, key: int) -> List[str]:
    """The conditions under which Python's dict methods may be used for a table and a key."""
    conditions = [] if w.kind(table) == TABLE else [f"type({w.value(table)}) is Table"]
    if w.kind(key) not in (*TRUE_KINDS, NIL):
        conditions.append(f"type({w.value(key)}) is not bool")
    return conditions


def look_up(w: Writer, a: int, b: int, c: int, slow: str, missing: str) -> Lines:
    """`ra = b[c]`; `missing` is what dict.get is told about a key that is not there."""
    t, k = w.value(b), w.value(c)
    if b < 0:
        return [f"r{a} = {slow}({t}, {k})"]
    conditions = " and ".join(is_table(w, b, c))
    return [f"r{a} = {t}.get({k}{missing})" + (f" if {conditions} else {slow}({t}, {k})" if conditions else "")]


def get_index(w: Writer, a: int, b: int, c: int) -> Lines:
    """GETINDEX."""
    return look_up(w, a, b, c, "index", "")


def get_entry(w: Writer, a: int, b: int, c: int) -> Lines:
    """GETENTRY."""
    return look_up(w, a, b, c, "entry", ", 0")


def set_index(w: Writer, a: int, b: int, c: int) -> Lines:
    """SETINDEX: what is charged already may replace what is under a key; new keys and strings of events are counted."""
    t, k, v = w.value(a), w.value(b), w.value(c)
    otherwise = [f"set_index({t}, {k}, {v})"]
    if w.kind(c) == NIL or a < 0:
        return otherwise
    charged = [f"type({v}) is int"] if w.kind(c) == ANY else []
    return choose(" and ".join([*is_table(w, a, b), *charged, f"{k} in {t}"]), [f"{t}[{k}] = {v}"], otherwise)


def update_index(operator: str, slow: str) -> Template:
    """ADDINDEX and SUBINDEX."""

    def template(w: Writer, a: int, b: int, c: int) -> Lines:
        t, k, v = w.value(a), w.value(b), w.value(c)
        otherwise = [f"{slow}({t}, {k}, {v})"]
        if never_integers(w, (c,)) or a < 0:
            return otherwise
        conditions = [*is_table(w, a, b), f"type(x := {t}.get({k})) is int", integers(w, (c,))]
        update = [f"x {operator}= {v}", f"{t}[{k}] = x if {MIN} <= x <= {MAX} else wrap(x)"]
        return choose(" and ".join([text for text in conditions if text]), update, otherwise)

    return template


def make_key(w: Writer, a: int, b: int, c: int) -> Lines:
    """KEY."""
    names = [f"r{b + n}" for n in range(c)]
    parts = ", ".join(names)
    unknown = [f"type(r{b + n}) in PLAIN" for n in range(c) if w.kind(b + n) not in (*INTEGERS, STRING)]
    if not unknown:
        return [f"r{a} = Key(({parts}))"]
    return [f"r{a} = Key(({parts})) if {' and '.join(unknown)} else make_key(({parts}))"]


def set_list(w: Writer, a: int, b: int, c: int) -> Lines:
    """SETLIST."""
    values = f"bounded(r{b})" if c == PACK else run(b, c)
    return [f"append({w.value(a)}, {values})"]


def sample(w: Writer, a: int, b: int, c: int) -> Lines:
    """SAMPLE."""
    t, k, v = w.value(a), w.value(b), w.value(c)
    otherwise = [f"sample({t}, {k}, {v})"]
    if a < 0:
        return otherwise
    conditions = " and ".join([*is_table(w, a, b), f"type(x := {t}.get({k})) is Stats"])
    return choose(conditions, [f"x.add({v})"], otherwise)


# -- functions --------------------------------------------------------------------------------


def run(first: int, number: int) -> str:
    """A tuple of `number` registers."""
    names = "".join([f"r{first + n}, " for n in range(number)])
    return f"({names.rstrip(' ')})"


def make_closure(w: Writer, a: int, b: int, c: int) -> Lines:
    """CLOSURE."""
    upvalues = w.program.functions[b].upvalues
    boxes = ", ".join([("r" if upvalue.from_register else "u") + str(upvalue.slot) for upvalue in upvalues])
    return [f"charge({w.closure_bytes(b)})", f"r{a} = make{b}({boxes})"]


def arguments(first: int, number: int, packed: bool) -> str:
    """The arguments of a call: `number` registers, the last holding a pack where `packed`."""
    names = [f"r{first + n}" for n in range(number)]
    if packed:
        names[-1] = f"*bounded({names[-1]})"
    return "".join([f", {name}" for name in names])


def call(packed: bool) -> Template:
    """CALL and CALLX."""

    def template(w: Writer, a: int, b: int, c: int) -> Lines:
        function = f"r{a}"
        target = function if c == 1 else "x"
        text = f"{target} = {function}(d + 1{arguments(a + 1, b, packed)})"
        if w.kind(a) != FUNCTION:
            text += f" if type({function}) is Function else not_callable({function})"
        return [text, *results(a, c)]

    return template


def results(first: int, wanted: int) -> Lines:
    """Put what a call returned where it belongs. A tuple is a pack or a tail call still to be made."""
    if wanted == 0:
        return ["if type(x) is tuple: finish(d + 1, x)"]
    if wanted == 1:
        return [f"if type(r{first}) is tuple: r{first} = one(d + 1, r{first})"]
    pack = "pack(d + 1, x) if type(x) is tuple else (x,)"
    if wanted == PACK:
        return [f"r{first} = {pack}"]
    return [f"{', '.join([f'r{first + n}' for n in range(wanted)])} = fit({pack}, {wanted})"]


def tail_call(packed: bool) -> Template:
    """TAILCALL and TAILCALLX: whoever called this function makes the call, unless it is of a builtin."""

    def template(w: Writer, a: int, b: int, c: int) -> Lines:
        passed = arguments(a + 1, b, packed)
        return [
            f"if type(r{a}) is not Function: not_callable(r{a})",
            f"return (TAIL, r{a}{passed}) if r{a}.__globals__ is NAMES else r{a}(d + 1{passed})",
        ]

    return template


def give_back(w: Writer, a: int, b: int, c: int) -> Lines:
    """RETURN."""
    return [f"return r{a}" if b == 1 else f"return {run(a, b)}"]


def give_back_pack(w: Writer, a: int, b: int, c: int) -> Lines:
    """RETURNX."""
    names = [f"r{a + n}" for n in range(b - 1)] + [f"*r{a + b - 1}"]
    return [f"return results(({', '.join(names)},))"]


def take_rest(w: Writer, a: int, b: int, c: int) -> Lines:
    """VARARG."""
    if b == PACK:
        return [f"r{a} = rest"]
    return [f"{', '.join([f'r{a + n}' for n in range(b)])}{',' if b == 1 else ''} = fit(rest, {b})"] if b else []


# -- events -----------------------------------------------------------------------------------


def get_event(w: Writer, a: int, b: int, c: int) -> Lines:
    """EVENT."""
    return [f"r{a} = {w.event_text(b)}"]


TEMPLATES: Dict[str, Template] = {
    **VALUE_TEMPLATES,
    "JUMP": jump,
    "JUMPIF": jump_if,
    "JUMPIFNOT": jump_if_not,
    "FORPREP": begin_counting,
    "FORLOOP": count,
    "ITERPREP": begin_iterating,
    "ITERNEXT": iterate,
    "GETGLOBAL": get_global,
    "SETGLOBAL": set_global,
    "GETUP": fill("r{a} = u{b}[0]"),
    "SETUP": fill("u{a}[0] = {y}"),
    "BOX": fill("r{a} = [{y}]"),
    "UNBOX": fill("r{a} = r{b}[0]"),
    "SETBOX": fill("r{a}[0] = {y}"),
    "NEWTABLE": fill("r{a} = Table(account)"),
    "GETINDEX": get_index,
    "GETENTRY": get_entry,
    "SETINDEX": set_index,
    "ADDINDEX": update_index("+", "add_index"),
    "SUBINDEX": update_index("-", "subtract_index"),
    "KEY": make_key,
    "SETLIST": set_list,
    "SAMPLE": sample,
    "STATADD": fill("r{a} = add_stats({y}, {z})"),
    "CLOSURE": make_closure,
    "BUILTIN": lambda w, a, b, c: [f"r{a} = {w.builtin_name(b)}"],
    "CALL": call(packed=False),
    "CALLX": call(packed=True),
    "TAILCALL": tail_call(packed=False),
    "TAILCALLX": tail_call(packed=True),
    "RETURN": give_back,
    "RETURNX": give_back_pack,
    "VARARG": take_rest,
    "EVENT": get_event,
    "SYMBOL": lambda w, a, b, c: [f"r{a} = symbol({w.constant(b)})"],
    "PROBE": lambda w, a, b, c: [f"set_probe({w.constant(b)}, {w.constant(c)}, {w.value(a)})"],
}

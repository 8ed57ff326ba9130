"""Writes programs: what hypothesis draws becomes a script that ends, with closures, loops and several values."""

from __future__ import annotations

from hypothesis import strategies as st

OPERATORS = ["+", "-", "*", "/", "%", "&", "|", "^", "<<", ">>", "==", "!=", "<", "<=", ">", ">=", "&&", "||"]
INTEGERS = ["+", "-", "*", "&", "|", "^", "<<", ">>", "&&", "||"]
LITERALS = ["nil", "true", "false", "0x7fffffffffffffff"]
GLOBALS = ["g1", "g2"]


class Writer:
    """Draws a program. Every variable has a name of its own; what is in `variables` is in scope."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.variables: list[str] = []
        self.functions: list[str] = []
        self.count = 0
        self.left = 60
        """Statements that may still be written."""

    def pick(self, *choices: str) -> str:
        return self.draw(st.sampled_from(choices))

    def chance(self, percent: int) -> bool:
        return self.draw(st.integers(0, 99)) < percent

    def number(self, least: int, most: int) -> int:
        return self.draw(st.integers(least, most))

    def new(self, letter: str = "v") -> str:
        self.count += 1
        return f"{letter}{self.count}"

    # -- expressions

    def name(self) -> str:
        return self.pick(*self.variables[-6:], *GLOBALS)

    def expression(self, depth: int = 3) -> str:
        """A value, an integer or nil as a rule: what could be an error is rare, so that programs run long."""
        kinds = ["number", "name", "name"]
        if depth > 0:
            kinds += ["binary", "binary", "unary", "brackets", "entry", "logical"] + ["call"] * bool(self.functions)
        kind = self.pick(*kinds)
        if kind == "number":
            return self.pick(*LITERALS) if self.chance(4) else self.pick("0", "1", "2", "3", "7", "-1", "64")
        if kind == "name":
            return self.name()
        if kind == "binary":
            operator = self.pick(*(OPERATORS if self.chance(4) else INTEGERS))
            return f"({self.expression(depth - 1)} {operator} {self.expression(depth - 1)})"
        if kind == "logical":
            return f"{self.name()} {self.pick('&&', '||')} {self.name()} {self.pick('&&', '||')} {self.expression(depth - 1)}"
        if kind == "unary":
            return f"{self.pick('-', '~')} {self.expression(depth - 1)}"
        if kind == "entry":
            return f"t[{self.keys(depth - 1)}]"
        return self.call(depth - 1) if kind == "call" else f"({self.expression(depth - 1)})"

    def condition(self, depth: int = 2) -> str:
        """A value that is tested."""
        kinds = ["order", "equal", "plain"] + ["and", "or", "not", "brackets"] * (depth > 0)
        kind = self.pick(*kinds)
        if kind == "order":
            return f"({self.name()} || {self.number(-1, 9)}) {self.pick('<', '<=', '>', '>=')} {self.number(-1, 9)}"
        if kind == "equal":
            return f"{self.expression(1)} {self.pick('==', '!=')} {self.expression(1)}"
        if kind == "not":
            return f"!({self.condition(depth - 1)})"
        if kind in ("and", "or"):
            return f"{self.condition(depth - 1)} {kind} {self.condition(depth - 1)}"
        return f"({self.condition(depth - 1)})" if kind == "brackets" else self.expression(depth)

    def keys(self, depth: int) -> str:
        return ", ".join(
            self.pick("1", "2", "true", f"({self.name()} || 0)", f"({self.expression(depth)} || 5)")
            for _ in range(1 + self.chance(20))
        )

    def call(self, depth: int = 1) -> str:
        return f"{self.pick(*self.functions)}({self.expressions(0, 3, depth)})"

    def expressions(self, least: int, most: int, depth: int = 2) -> str:
        return ", ".join(self.expression(depth) for _ in range(self.number(least, most)))

    # -- statements

    def block(self, loop: bool, function: bool, most: int = 4) -> str:
        known = len(self.variables), len(self.functions)
        text = " ".join(self.statement(loop, function) for _ in range(self.number(1, most)))
        del self.variables[known[0] :], self.functions[known[1] :]
        return text

    def statement(self, loop: bool, function: bool) -> str:
        self.left -= 1
        simple = ["local", "local", "assign", "assign", "update", "print", "print", "entry"] + ["call"] * bool(
            self.functions
        )
        leaves = ["break", "continue"] * loop + ["return"] * function
        nested = ["if", "if", "while", "repeat", "count", "parts", "block", "closure", "closure"]
        kind = self.pick(*simple, *leaves, *(nested if self.left > 0 else []))
        method = getattr(self, f"write_{kind}")
        text = method(loop, function)
        assert isinstance(text, str)
        return text

    def write_local(self, loop: bool, function: bool) -> str:
        names = [self.new() for _ in range(self.number(1, 3))]
        values = self.expressions(0, 3)
        self.variables += names
        return f"var {', '.join(names)}" + f" = {values}" * bool(values)

    def write_assign(self, loop: bool, function: bool) -> str:
        targets = [self.name() if self.chance(75) else f"t[{self.keys(1)}]" for _ in range(self.number(1, 3))]
        return f"{', '.join(targets)} = {self.expressions(1, 3)}"

    def write_update(self, loop: bool, function: bool) -> str:
        return f"{self.name()} {self.pick('+=', '-=', '*=')} {self.expression()}"

    def write_entry(self, loop: bool, function: bool) -> str:
        return f"t[{self.pick('1', '2', 'true', '3, 4')}] {self.pick('+=', '-=', '*=')} {self.expression()}"

    def write_print(self, loop: bool, function: bool) -> str:
        return f"print({self.expressions(0, 4)})"

    def write_call(self, loop: bool, function: bool) -> str:
        return self.call()

    def write_break(self, loop: bool, function: bool) -> str:
        return f"if ({self.condition()}) {{ break }}" if self.chance(80) else "break"

    def write_continue(self, loop: bool, function: bool) -> str:
        return f"if ({self.condition()}) {{ continue }}" if self.chance(80) else "continue"

    def write_return(self, loop: bool, function: bool) -> str:
        values = self.call() if self.functions and self.chance(40) else self.expressions(0, 3)
        return f"if ({self.condition()}) {{ return {values} }}" if self.chance(60) else f"return {values};"

    def write_if(self, loop: bool, function: bool) -> str:
        text = f"if ({self.condition()}) {{ {self.block(loop, function)} }}"
        for _ in range(self.number(0, 2)):
            text += f" elseif ({self.condition()}) {{ {self.block(loop, function)} }}"
        return text + (f" else {{ {self.block(loop, function)} }}" if self.chance(50) else "")

    def write_block(self, loop: bool, function: bool) -> str:
        return f"{{ {self.block(loop, function)} }}"

    def write_while(self, loop: bool, function: bool) -> str:
        counter = self.new("w")
        more = f" && {self.condition()}" if self.chance(30) else ""
        body = self.block(True, function)
        return f"var {counter} = 0 while ({counter} < {self.number(0, 4)}{more}) {{ {counter} += 1 {body} }}"

    def write_repeat(self, loop: bool, function: bool) -> str:
        counter = self.new("w")
        known = len(self.variables), len(self.functions)
        body = " ".join(self.statement(True, function) for _ in range(self.number(1, 4)))
        inner = self.name() if self.chance(40) else "nil"
        del self.variables[known[0] :], self.functions[known[1] :]
        return (
            f"var {counter} = 0 repeat {{ {counter} += 1 {body} }} until ({counter} > {self.number(0, 3)} || {inner})"
        )

    def write_count(self, loop: bool, function: bool) -> str:
        variable = self.new()
        header = f"for ({variable} = {self.number(-2, 3)}, {self.number(-2, 4)}" + self.pick("", ", 2", ", -1", ", 1")
        self.variables.append(variable)
        body = self.block(True, function)
        self.variables.remove(variable)
        return f"{header}) {{ {body} }}"

    def write_parts(self, loop: bool, function: bool) -> str:
        variable = self.new("w")
        held = self.new("f")
        self.functions.append(held)
        body = self.block(True, function)
        self.functions.remove(held)
        closure = f"local function {held}() {{ {self.pick('', f'{variable} += 1')} return {variable} }}"
        return f"for ({variable} = 0; {variable} < {self.number(0, 4)}; {variable} += 1) {{ {closure} {body} }}"

    def write_closure(self, loop: bool, function: bool) -> str:
        name = self.new("f")
        parameters = [self.new() for _ in range(self.number(0, 2))]
        variadic = self.chance(20)
        known = len(self.variables)
        self.variables += parameters
        body = self.block(False, True, 5)
        if variadic:
            body += f" return {self.pick('...', '1, ...', '(...)', '..., 2')}"
        del self.variables[known:]
        self.functions.append(name)
        head = f"{name}({', '.join(parameters + ['...'] * variadic)}) {{ {body} }}"
        return self.pick(f"local function {head}", f"function {head}")


@st.composite
def programs(draw: st.DrawFn) -> str:
    """The text of a program."""
    writer = Writer(draw)
    lines = [writer.statement(False, False) for _ in range(draw(st.integers(3, 9)))]
    names = ", ".join([*writer.variables[-8:], *GLOBALS])
    return "\n".join(["t = {}", "g1, g2 = 1", *lines, f"print({names}, t[1], t[2], t[true], t[3, 4])"])

"""What generated code does: scripts that state what they print, run on the machine."""

from __future__ import annotations

import pytest

from tests.compiler.running import run
from vm.limits import Limits

CASES = {
    "right sides before any store": ("var a, b = 1, 2 a, b = b, a + b print(a, b) a, b = b, a print(a, b)", "2 3|3 2"),
    "targets before right sides": ("var i, t = 1, {} i, t[i] = i + 1, 20 print(i, t[1], t[2])", "2 20 nil"),
    "a swap of entries": ("var t = {1, 2} t[1], t[2] = t[2], t[1] print(t[1], t[2])", "2 1"),
    "the table of a target is read first": ("var t, u = {}, {} t, t.x = u, 5 print(t == u, t.x)", "true nil"),
    "too few and too many values": ("function f() { n = 7 } var a, b = 1 print(a, b) a, b = 1, 2, f() print(a, b) print(n)", "1 nil|1 2|7"),
    "several results spread at the end only": (
        "function f() { return 1, 2, 3 } print(f(), f()) var a, b, c, d = f() print(a, b, c, d) var e, g = f(), 9 print(e, g)",
        "1 1 2 3|1 2 3 nil|1 9",
    ),
    "brackets give one value": ("function f() { return 1, 2 } print((f())) var t = {(f())} print(len(t)) print((f()), 5)", "1|1|1 5"),
    "no results": ("function f() { } print(f()) print((f())) var a = f() print(a)", "|nil|nil"),
    "varargs": ("function f(a, ...) { var b, c = ... return c, b, a, ... } print(f(1, 2, 3)) print(f(1))", "3 2 1 2 3|nil nil 1"),
    "varargs in the middle are one": ("function f(...) { return ..., 9 } print(f(5, 6)) print(f())", "5 9|nil 9"),
    "tables of packs": ("function f(...) { var t = {0, ...} return len(t), t[3] } print(f(1, 2))", "3 2"),
    "a tail call passes all results": ("function g(...) { return ..., 1, 2 } function f(x) { return g(x) } print(f(8))", "8 1 2"),
    "a million tail calls": ("function f(n) { if (n == 0) { return 1, 2 } return f(n - 1) } print(f(1000000))", "1 2"),
    "mutual tail calls": (
        "function even(n) { if (n == 0) { return true } return odd(n - 1) } "
        "function odd(n) { if (n == 0) { return false } return even(n - 1) } print(even(10001))",
        "false",
    ),
    "tail call of a builtin": ("function f(x) { return tostring(x) } print(f(5) .. f(nil))", "5nil"),
    "tail call of a pack": ("function f(...) { return g(1, ...) } function g(a, b) { return b, a } print(f(2))", "2 1"),
    "closures capture variables": (
        "function counter() { var n = 0 return function () { n += 1 return n }, function () { return n } } "
        "var inc, get = counter() inc() inc() print(get()) var other = counter() print(other(), get())",
        "2|1 2",
    ),
    "a box each round of a counting loop": (
        "var f = {} for (i = 1, 3) { f[i] = function () { i += 10 return i } } print(f[1](), f[1](), f[2]())",
        "11 21 12",
    ),
    "a change of the variable does not change the count": ("for (i = 1, 3) { print(i) i += 5 }", "1|2|3"),
    "a box each round of a loop of three parts": (
        "var f = {} for (i = 0; i < 3; i += 1) { f[i] = function () { i += 10 return i } } print(f[0](), f[0](), f[2](), i)",
        "10 20 12 nil",
    ),
    "the loop of three parts counts in its variable": (
        "for (i = 0; i < 10; i += 1) { var g = function () { i += 2 } g() print(i) }",
        "2|5|8|11",
    ),
    "a box each round of pairs": (
        "var f = {} for (k, v in pairs({5, 6})) { f[k] = function () { v += 1 return v } } print(f[1](), f[1](), f[2]())",
        "6 7 7",
    ),
    "a box each round of while": (
        "var f, n = {}, 0 while (n < 2) { n += 1 var x = n f[n] = function () { return x } } print(f[1](), f[2]())",
        "1 2",
    ),
    "two closures share one variable": (
        "var a = 1 var f, g = function () { a += 1 }, function () { return a } f() print(g(), a) a = 9 print(g())",
        "2 2|9",
    ),
    "parameters can be captured": ("function f(a, b) { return function () { a += b return a } } var g = f(1, 2) g() print(g())", "5"),
    "through two functions": (
        "function f() { var x = 1 return function () { return function () { x += 1 return x } } } var g = f()() print(g(), g())",
        "2 3",
    ),
    "a local function calls itself": ("local function f(n) { if (n < 2) { return 1 } return n * f(n - 1) } print(f(20))", "2432902008176640000"),
    "continue in repeat sees nil": ("var i = 0 repeat { i += 1 if (i == 3) { continue } var x = i } until (x == nil) print(i)", "3"),
    "continue in repeat goes to the condition": ("var i = 0 repeat { i += 1 continue } until (i == 5) print(i)", "5"),
    "a variable of repeat is new each round": (
        "var i, f = 0, {} repeat { i += 1 if (i == 9) { continue } var x f[i] = function () { return x } x = i } until (x == 3) print(f[1](), f[3]())",
        "1 3",
    ),
    "repeat declares a name twice": ("var i = 0 repeat { i += 1 if (i < 3) { continue } var x, x = 1, 2 } until (x == 2) print(i)", "3"),
    "continue in the other loops": (
        "var s = 0 for (i = 1, 5) { if (i == 2) { continue } s += i } for (i = 0; i < 5; i += 1) { if (i == 2) { continue } s += i } "
        "var n = 0 while (n < 5) { n += 1 if (n == 2) { continue } s += n } for (k, v in pairs({1, 2, 3})) { if (v == 2) { continue } s += v } print(s)",
        "38",
    ),
    "break leaves the inmost loop": ("for (i = 1, 2) { for (j = 1, 5) { if (j == 2) { break } print(i, j) } }", "1 1|2 1"),
    "a counting loop in steps": ("for (i = 10, 1, -4) { print(i) } for (i = 1, 0) { print(i) } for (i = 1, 5, 2) { print(i) }", "10|6|2|1|3|5"),
    "a counting loop at the end of integers": (
        "for (i = 0x7ffffffffffffffe, 0x7fffffffffffffff) { print(i) }",
        "9223372036854775806|9223372036854775807",
    ),
    "loops of three parts, parts left out": ("var i = 0 for (; ; ) { i += 1 if (i == 3) { break } } for (; i < 6; ) { i += 1 } print(i)", "6"),
    "a long condition": (
        "var n = 0 while (n < 1 || n < 2 || n < 3 || n < 4 || n < 5 || n < 6 || n < 7 || n < 8) { n += 1 } print(n)",
        "8",
    ),
    "a function in a condition": ("var n = 0 while ((function () { n += 1 return n < 4 })()) { } print(n)", "4"),
    "and, or and not give values": ("print(1 && 2, nil && 1, false || 3, nil || false, !0, not nil, 0 or 1, 0 and 1)", "2 nil 3 false false true 0 1"),
    "short circuits": ("function f() { print('f') return true } var a = false && f() a = true || f() a = true && f() print(a)", "f|true"),
    "values of chains": (
        "var a, b, c = nil, false, 3 print(a || b || c, a && b || c, c && a || b, (a || c) && b, !(a && b) || c)",
        "3 3 false false true",
    ),
    "in place": ("var a, b = nil, 2 a = a || b print(a) a = b || a print(a) b = b && a && nil print(b) a = (a || 1) && a print(a)", "2|2|nil|2"),
    "in place, with what stood there before": ("var x, y = false, nil x = (x || y) || x print(x)", "false"),
    "conditions": (
        "var a, b = 1, nil if (a && !b) { print(1) } if (!(a || b)) { print(2) } elseif (b || a == 1 && !(a > 1)) { print(3) } else { print(4) }",
        "1|3",
    ),
    "comparisons": ("var a, b = 1, 2 print(a > b, a >= b, a < b, a <= b, a >= 1, 'b' > 'a', 1 == '1', nil == false)", "false false true true true true false false"),
    "from left to right": (
        "function f(x) { printf('%d', x) return x } var t = {} t[f(1)] = f(2) print(f(3) > f(4), f(5) - f(6) * f(7)) t[f(1)], t[f(2)] = f(3), f(4) "
        "var u = {f(1), [f(2)] = f(3), f(4)} printf('\\n')",
        "1234567false -37|12341234",
    ),
    "updates": ("var a = 7 a += 1 a -= 2 a *= 6 a /= 5 a %= 4 a ..= 'x' print(a)", "3x"),
    "updates of entries": ("var t = {} t.n += 5 t.m -= 5 t.n *= 3 t.o *= 3 t.n /= 2 t.n %= 4 t.s = 'a' t.s ..= 1 .. 'b' print(t.n, t.m, t.o, t.s)", "3 -5 0 a1b"),
    "updates of globals and shared variables": ("g += 1 print(g) g = 1 g += 1 var x = 1 function f() { x += 1 x *= 2 } f() x -= 1 print(g, x)", "nil|2 3"),
    "the key of an update is computed once": ("var n, t = 0, {} function k() { n += 1 return n } t[k()] += 5 t[k()] *= 5 print(n, t[1], t[2])", "2 5 0"),
    "multi-keys": ("var t = {} t[1, 'a'] = 5 t[1, 'a'] += 1 print(t[1, 'a'], t['a', 1], t[1]) for (a, b, v in pairs(t)) { print(a, b, v) }", "6 nil nil|1 a 6"),
    "samples": ("s[1] <<< 5 s[1] <<< 7 x <<< 3 var l l <<< 4 print(sum(s[1]), count(s[1]), sum(x), max(l))", "12 2 3 4"),
    "a table from the start": ("s.n += 1 print(s.n) t[1] = 2 print(len(t))", "1|1"),
    "constructors": ("var t = {1, 'b', nil, 4, x = 5, [6 + 1] = 8, [true] = 9} print(t[1], t[2], t[3], t[4], t.x, t[7], t[true], len(t))", "1 b nil 4 5 8 9 6"),
    "functions in tables": ("t = {} function t.f(x) { return x * 2 } function t.g(x) { return t.f(x) + 1 } print(t.g(4))", "9"),
    "a builtin hidden by a variable": ("var len = function (x) { return 42 } print(len('abc'))", "42"),
    "a builtin as a value": ("var f = tostring print(f(5) .. 'x')", "5x"),
    "older calls": ("trace_end { print(probename, argname, pid(), execname) }", "trace_end trace_end nil nil"),
    "an event variable is nil outside of events": ("print(pid, args.x, arg3, curtask.mm)", "nil nil nil nil"),
    "handlers share variables": ("var n = 0 trace_begin { n += 1 } trace_end { n += 1 print(n) }", "2"),
    "probes in a loop": ("for (i = 1, 3) { if (i != 2) { tick-1s { print(i, probename) } } }", "1 tick-1s|3 tick-1s"),
    "an older handler has a parameter": ('trace "a:b" function (e) { print(e) }', "nil"),
    "blocks hide names": ("var x = 1 { var x = x + 1 print(x) { var x = 5 } print(x) } print(x)", "2|2|1"),
    "a name declared again": ("var x = 1 var f = function () { return x } var x = 2 print(f(), x)", "1 2"),
    "symbols": ("print(`known`)", "4096"),
    "return from the main chunk": ("print(1) if (true) { return } print(2)", "1"),
    "return in loops": ("function f() { for (i = 1, 5) { for (k, v in pairs({1, 2})) { while (true) { return i, v } } } } print(f())", "1 1"),
    "arguments of the main chunk": ("print(...)", ""),
    "the table arg": ("print(arg[0])", "test.kp"),
    "an own iterator": (
        "function upto(n) { return function (s, c) { if (c == s) { return nil } return c + 1, c * c }, n, 0 } for (i, sq in upto(3)) { print(i, sq) }",
        "1 0|2 1|3 4",
    ),
    "deep expressions": ("var a = 1 print(a" + " + a" * 150 + ", " + "(" * 60 + "a" + ")" * 60 + ")", "151 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("folding", [True, False], ids=["folded", "unfolded"])
def test_case(name: str, folding: bool) -> None:
    text, expected = CASES[name]
    assert run(text, folding=folding).replace("\t", " ").replace("\n", "|") == (
        expected + "|" if expected else "|" * ("(...)" in text)
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("var a = 1\nprint(a /\n 0)", "2:7: divide 0"),
        ("var a = 1\nprint(2 * a / 0)", "2:13: divide 0"),
        ("x = nil\nx.y = 1", "2:1: "),
        ("x = {}\nprint(x.y.z)", "2:11: "),
        ("x = {}\nx.y(1)", "2:1: "),
        ("x = {}\nx[x.y, 1] = 2", "2:3: "),
        ("x = {} y = nil\nx[1] += 1 x[y] = 1", "2:11: "),
        ("x = 1\nx <<< 2", "2:3: "),
        ("for (i = 1, 5, 0) { }", "1:10: "),
        ("for (i = 1, 'a') { }", "1:10: "),
        ("for (k in 5) { }", "1:11: "),
        ("x = 'a'\nif (x < 1) { }", "2:7: "),
        ("print(`unknown_symbol`)", "1:7: "),
    ],
)
def test_places_of_faults(text: str, expected: str) -> None:
    assert run(text).split("\n")[-2].startswith(f"FAULT {expected}")


def test_the_chain_of_calls() -> None:
    text = "function f(x) {\n  return 1 + t.g(x)\n}\nt = {}\nfunction t.g(x) {\n  var y = x / 0\n  return y\n}\nf(1)"
    assert run(text) == "FAULT 6:13: divide 0\nfrom f 2:14\nfrom main chunk 9:1\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("var n\nwhile (true) {\n  if (n) { n += 1 } else { n = 2 }\n}", "2:8"),
        ("var n\nwhile (true) {\n  if (!n) { continue }\n}", "2:8"),
        ("var n\nwhile (!n) {\n}", "2:9"),
        ("repeat {\n} until (x)\nx = nil", "2:10"),
        ("for (i = 1, 1000) {\n}", "1:6"),
        ("for (i = 0; i < 1000; i += 1) {\n}", "1:13"),
        ("for (k in function () { return 1 }) {\n}", "1:11"),
    ],
)
def test_endless_loops_are_told_at_their_loop(text: str, expected: str) -> None:
    told = run(text, limits=Limits(main_rounds=100))
    assert told == f"FAULT {expected}: loop execute count exceed max limit\n"

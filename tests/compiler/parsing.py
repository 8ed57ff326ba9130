"""What the tests of the parser share: parts of what a text reads as, the refusal of one, a text with everything in it."""

from __future__ import annotations

from typing import Union

import pytest

from compiler import tree
from compiler.parse import parse
from vm.diagnostic import Refusal

EVERYTHING = """#!/usr/bin/env ktap
var a, b = 1, "two"
local function f(x, ...) { return x, ... }
function t.g() { return f(-a) }
a, t[b, 2] = {1, [a] = 2; c = [[raw
text]]}, `jiffies`
t.n += (a .. b) * 2
s[execname] <<< args.size.x
if (a == 1 && !b) { break } elseif (b) { continue } else { f() }
while (true) { a = nil }
repeat { var q = 1 } until (q > 2)
for (i = 1, 10, 2) { print(i) }
for (var j = 0; j < 3; j += 1) { }
for (k, v in pairs(t)) { }
trace sched:*, probe:f x=%di /pid == 1/ { print(argstr) }
trace "a:b" function (e) { print(e.name) }
tick-1s { exit() }
trace_end { }
"""


def body(text: Union[str, bytes]) -> tuple[tree.Statement, ...]:
    return parse(text, "t.kp").script.body.body


def statement(text: str) -> tree.Statement:
    (only,) = body(text)
    return only


def expression(text: str) -> tree.Expression:
    assign = statement(f"x = {text}")
    assert isinstance(assign, tree.Assign)
    return assign.values[0]


def kinds(text: str) -> list[str]:
    return [type(each).__name__ for each in body(text)]


def refusal(text: Union[str, bytes]) -> Refusal:
    with pytest.raises(Refusal) as caught:
        parse(text, "t.kp")
    return caught.value

"""A script's text to a program: parse, fold, resolve, generate; every error that can be told at once."""

from __future__ import annotations

import sys
from typing import Collection, Union

from compiler import tree
from compiler.fold import fold
from compiler.generate import generate
from compiler.scope import resolve
from vm.diagnostic import Diagnostic, Refusal
from vm.named_tuple import NamedTuple
from vm.program import Program

FRAMES = 6000
"""Python frames the passes may need for a tree as deep as the parser lets one be, with room to spare."""


class CompileResult(NamedTuple):
    """A program and the warnings about its script."""

    program: Program
    warnings: tuple[Diagnostic, ...]


def compile_source(text: Union[str, bytes], name: str) -> CompileResult:
    """Compile a script; `name` is what its diagnostics call it. Raises Refusal with all of its errors."""
    from compiler.parse import parse  # lark is slow to import

    parsed = parse(text, name)
    result = compile_tree(parsed.script, builtin_names())
    return CompileResult(result.program, parsed.warnings + result.warnings)


def builtin_names() -> frozenset[str]:
    """The full names of all builtins of the library."""
    from vm.library import rows

    return frozenset(row.name for row in rows())


def compile_tree(script: tree.Script, builtins: Collection[str], folding: bool = True) -> CompileResult:
    """Compile a syntax tree; `builtins` are the full names (`string.sub`) of those there are."""
    recursion = sys.getrecursionlimit()
    sys.setrecursionlimit(max(recursion, FRAMES))
    try:
        return _compile(fold(script) if folding else script, builtins)
    finally:
        sys.setrecursionlimit(recursion)


def _compile(script: tree.Script, builtins: Collection[str]) -> CompileResult:
    scopes = resolve(script, builtins)
    if any(not diagnostic.warning for diagnostic in scopes.diagnostics):
        raise Refusal(scopes.diagnostics, script.source)
    program, excesses = generate(script, scopes)
    if excesses:
        raise Refusal(excesses, script.source)
    return CompileResult(program, tuple(scopes.diagnostics))

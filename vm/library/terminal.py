"""The `ansi` library: escape sequences for terminals (ECMA-48)."""

from __future__ import annotations

from vm.library.builtin import NOTHING, Machine, builtin


@builtin("ansi.clear_screen", "", "", ("output",))
def clear_screen(machine: Machine, depth: int) -> object:
    """clear the screen and go to its top"""
    machine.output.write(b"\x1b[2J\x1b[1;1H")
    return NOTHING


@builtin("ansi.set_color", "a: integer", "", ("output",))
def set_color(machine: Machine, depth: int, a: int) -> object:
    """set a colour: 30 to 37 for the text, 40 to 47 behind it"""
    machine.output.write(b"\x1b[%dm" % a)
    return NOTHING


@builtin("ansi.set_color2", "a: integer, b: integer", "", ("output",))
def set_color2(machine: Machine, depth: int, a: int, b: int) -> object:
    """set two attributes at once"""
    machine.output.write(b"\x1b[%d;%dm" % (a, b))
    return NOTHING


@builtin("ansi.set_color3", "a: integer, b: integer, c: integer", "", ("output",))
def set_color3(machine: Machine, depth: int, a: int, b: int, c: int) -> object:
    """set three attributes at once"""
    machine.output.write(b"\x1b[%d;%d;%dm" % (a, b, c))
    return NOTHING


@builtin("ansi.reset_color", "", "", ("output",))
def reset_color(machine: Machine, depth: int) -> object:
    """set all attributes back"""
    machine.output.write(b"\x1b[0m")
    return NOTHING


@builtin("ansi.new_line", "", "", ("output",))
def new_line(machine: Machine, depth: int) -> object:
    """print a newline"""
    machine.output.write(b"\n")
    return NOTHING

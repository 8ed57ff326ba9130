"""Diagnostics as text."""

from vm.diagnostic import Diagnostic
from vm.program import Span


def test_no_character_of_a_script_commands_the_terminal() -> None:
    told = Diagnostic("a.kp", Span(1, 3, 1, 4), "unexpected symbol near '\x1b'").render("x \x1b[2J é\ty")
    assert told == "a.kp:1:3: unexpected symbol near '\ufffd'\nx \ufffd[2J é\ty\n  ^"

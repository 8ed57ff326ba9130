"""What is known when a function returns, and what a script is told that asks for more."""

from __future__ import annotations

from pathlib import Path

import pytest
from probed import message, run
from tracing import EVENTS

pytestmark = pytest.mark.live


@pytest.mark.parametrize("tier", ["vm", "auto", EVENTS])
@pytest.mark.parametrize("text", ["", ", argstr != nil"])
def test_what_a_return_adds_has_no_number(work: Path, tier: str, text: str) -> None:
    """arg1 was where the function returns to, or what it returns, by what else the script read."""
    script = f"trace probe:{work}:work%return {{ print(arg0 != nil, arg1, arg2, retval{text}) }}"
    traced = run(script, work, 1, tier=tier)
    assert traced.lines == ["true\tnil\tnil\t150" + ("\ttrue" if text else "")]
    assert [notice for notice in traced.notices if "keep it by thread at the entry" in notice] == [
        f"arg1, arg2 of `probe:{work}:work%return`: nil, known at the entry only;"
        " keep it by thread at the entry, as in t[tid] = arg1"
    ]


def test_fetch_arguments_of_a_return_have_numbers(work: Path) -> None:
    script = f'trace probe:{work}:work%return r=$retval:u8 t=\\"x" {{ print(arg1, arg2, arg3, retval) }}'
    traced = run(script, work, 1)
    assert traced.lines == ["150\tx\tnil\t150"]
    assert not any("known at the entry" in notice for notice in traced.notices)


def test_members_of_what_is_no_pointer_to_a_structure(work: Path) -> None:
    assert "`s64 *` has no members, so no `size`" in message(f"trace probe:{work}:work%return {{ print(retval.size) }}")
    told = message("trace syscalls:sys_exit_read { print(retval.size) }")
    assert told.startswith("`syscalls:sys_exit_read` returns no pointer to a structure")


def test_names_of_ktaps_own_are_no_suggestion(work: Path) -> None:
    assert "__probe" not in message(f"trace probe:{work}:work%return {{ print(args.retvall) }}")

"""Drawn distributions, character by character."""

from __future__ import annotations

from vm.histogram import draw, draw_largest, draw_powers, draw_steps, short


def test_the_picture_of_the_manual() -> None:
    rest = [(b"sys_%d" % n, 20) for n in range(32)] + [(b"last", 6)]
    drawn = draw_largest([*rest, (b"sys_enter_read", 287)], 1).split(b"\n")
    assert drawn == [
        b"                          value ------------- Distribution ------------- count",
        b"                 sys_enter_read |@@@@@@@@@@@                            287",
        b"                            ... |",
        b"",
    ]


def test_largest_first_and_equal_ones_as_they_came() -> None:
    drawn = draw_largest([(b"b", 1), (b"a", 1), (b"c", 3)], 20).decode().split("\n")[1:]
    assert drawn == [
        "                              c |@@@@@@@@@@@@@@@@@@@@@@@                3",
        "                              b |@@@@@@@                                1",
        "                              a |@@@@@@@                                1",
        "",
    ]


def test_one_row_fills_the_bar() -> None:
    assert draw([(b"x", 5)], 5).split(b"\n")[1] == b"x".rjust(31) + b" |" + b"@" * 39 + b"5"


def test_nothing_but_a_heading() -> None:
    assert draw_largest([], 20).count(b"\n") == 1


def test_counts_of_zero_and_below_have_no_bar() -> None:
    drawn = draw_largest([(b"none", 0), (b"less", -4)], 20)
    assert b"@" not in drawn
    assert drawn.endswith(b"-4\n")


def test_a_long_label_moves_all_columns() -> None:
    lines = draw_largest([(b"x" * 40, 1), (b"y", 1), (b"z", 1)], 2).split(b"\n")
    assert lines[0].startswith(b"value".rjust(40) + b" ---")
    assert {line.index(b"|") for line in lines[1:4]} == {41}


def test_a_stack_is_drawn_in_one_line() -> None:
    assert b"one; two |" in draw_largest([(b"one\ntwo\n", 1)], 20)


def test_suffixes() -> None:
    assert [short(n) for n in (0, 1, 1000, 1024, 1025, 65536, 1 << 20, 3 << 30, 1 << 62)] == [
        "0", "1", "1000", "1K", "1025", "64K", "1M", "3G", "4E",
    ]  # fmt: skip


def test_powers_of_two() -> None:
    drawn = draw_powers({-1: 1, 0: 1, 1: 1, 3: 4, 63: 1}).decode().split("\n")
    assert drawn[:8] == [
        "                          value ------------- Distribution ------------- count",
        "                       (..., 0) |@@@@                                   1",
        "                         [0, 1) |@@@@                                   1",
        "                         [1, 2) |@@@@                                   1",
        "                         [2, 4) |                                       0",
        "                         [4, 8) |@@@@@@@@@@@@@@@@@@@                    4",
        "                        [8, 16) |                                       0",
        "                       [16, 32) |                                       0",
    ]
    assert drawn[12].split(" |")[0].strip() == "[512, 1K)"
    assert drawn[-2].split(" |")[0].strip() == "[4E, 8E)"
    assert len(drawn) == 67


def test_equal_steps() -> None:
    assert draw_steps({-1: 2, 0: 1, 3: 1}, 10, 20, 3).decode().split("\n") == [
        "                          value ------------- Distribution ------------- count",
        "                      (..., 10) |@@@@@@@@@@@@@@@@@@@                    2",
        "                       [10, 13) |@@@@@@@@@                              1",
        "                       [13, 16) |                                       0",
        "                       [16, 19) |                                       0",
        "                       [19, 20) |@@@@@@@@@                              1",
        "",
    ]
    assert b"[20, ...) |" in draw_steps({4: 1}, 10, 20, 3)

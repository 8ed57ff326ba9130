"""Lay the blocks of a function out as Python: loops as `while True`, the rest as nested and flat `if`s.

The blocks of a region stand one after the other. A block that is reached from one place only is
written there (see `vm.blocks`); of the others, the variable `b` says which is next where there is a
choice: a block of which no other can be next has no `if`, and `b` is not set where nobody asks.

    if b == 3:          # only where another could be next here
        …
    while True:         # a region
        …
        if c:
            b = 7
            break       # what is next lies outside
        …
        continue        # back to the region's first block

Each way back counts a loop round. `b` is asked after a loop, to go on in, back to or out of the loop
around it.
"""

from __future__ import annotations

from typing import List, Optional, Sequence, Set, Tuple

from vm.blocks import Flow
from vm.named_tuple import NamedTuple

Text = Tuple[str, int]
"""A line and the instruction it belongs to."""

ROUND = ("for _ in rounds: break", "else: raise out_of_rounds()")


class Branch(NamedTuple):
    """How a block ends that has two ways on: `condition` is Python that is true when it jumps."""

    condition: str
    negated: str
    on_jump: Tuple[str, ...] = ()
    """Lines to run before going on at the jump's target."""
    on_fall: Tuple[str, ...] = ()


class Body(NamedTuple):
    """The translated instructions of a block, and how it ends where it has two ways on."""

    lines: Sequence[Text]
    branch: Optional[Branch]
    place: int
    """The last instruction, which way back is counted at."""


class Layout:
    """Writes a function. `write` is repeated until it knows which settings of `b` are asked for."""

    def __init__(self, flow: Flow, bodies: Sequence[Body]) -> None:
        self.flow = flow
        self.bodies = bodies
        self.lines: List[Text] = []
        self.asked: List[Set[int]] = [set() for _ in flow.blocks]
        """For each block, the regions in which `b` is asked where it is next."""
        self.asked_in: List[Set[int]] = [set() for _ in flow.regions]
        """The same by region."""
        self.again: List[Set[int]] = [set() for _ in flow.regions]
        """For each region, the blocks at which one of its rounds can begin by `continue`."""
        self.region = 0
        self.position = 0
        """The block the current one is written in: what comes later in the region is reached by going on down."""
        self.next: Set[int] = set()
        """Blocks that can be next where the next line stands."""
        self.left: Set[int] = set()
        """Blocks that can be next after the current region was left by `break`."""
        self.items: List[List[int]] = [[] for _ in flow.regions]
        self.children: List[List[int]] = [[] for _ in flow.regions]
        for number, region in enumerate(flow.regions[1:], 1):
            self.children[region.parent or 0].append(number)
        for number, home in enumerate(flow.home):
            if not flow.inlined[number]:
                self.items[home].append(number)

    def write(self, indent: int) -> List[Text]:
        """All lines of the function."""
        known = -1
        while known != self.known():
            known = self.known()
            self.lines = []
            self.next = {0}
            if self.is_asked(0, 0, inside=True):
                self.add(indent, "b = 0", 0)
            if self.again[0]:
                self.add(indent, "while True:", 0)
            self.write_region(0, indent + bool(self.again[0]))
        return self.lines

    def known(self) -> int:
        """Grows with every pass that found something, and does not in the last."""
        return sum(map(len, self.asked)) + sum(map(len, self.again))

    def ask(self, possible: Set[int]) -> None:
        """`b` is asked in the current region, where one of `possible` is next."""
        known = self.asked_in[self.region]
        new = possible - known
        known |= new
        for block in new:
            self.asked[block].add(self.region)

    def is_asked(self, block: int, number: int, inside: bool) -> bool:
        """True if `b` is asked for `block` somewhere in region `number`, or somewhere outside of it."""
        region, regions = self.flow.regions[number], self.flow.regions
        within = [where >= number and region.holds(regions[where].first) for where in self.asked[block]]
        return any(within) if inside else not all(within)

    def add(self, indent: int, text: str, place: int) -> None:
        """One more line."""
        self.lines.append(("    " * indent + text, place))

    def write_region(self, number: int, indent: int) -> None:
        """The blocks and loops of a region; `next` has the blocks by which it is entered."""
        self.next |= self.again[number]
        parts: List[Tuple[int, Optional[int]]] = [(first, None) for first in self.items[number]]
        parts.extend([(self.flow.regions[child].first, child) for child in self.children[number]])
        for first, loop in sorted(parts, key=lambda part: part[0]):
            self.region = number
            self.position = first
            if loop is None:
                self.write_item(first, indent)
            else:
                self.write_loop(loop, indent)

    def guard(self, entries: Set[int], indent: int, place: int) -> int:
        """An `if` around what follows unless one of `entries` must be next; the indentation inside it."""
        if entries == self.next:
            return indent
        self.ask(self.next)
        low, high = min(entries), max(entries)
        self.add(indent, f"if b == {low}:" if low == high else f"if {low} <= b <= {high}:", place)
        return indent + 1

    def write_item(self, block: int, indent: int) -> None:
        """A block of the flat row."""
        if block in self.next:
            inner = self.guard({block}, indent, self.flow.blocks[block].first)
            self.next.discard(block)
            before = len(self.lines)
            self.write_block(block, inner)
            if inner > indent and len(self.lines) == before:
                self.add(inner, "pass", self.flow.blocks[block].first)

    def write_loop(self, number: int, indent: int) -> None:
        """A region inside the current one, and where to go when it has been left."""
        outer_number, outer_left = self.region, self.left
        region, outer = self.flow.regions[number], self.flow.regions[outer_number]
        entries = {block for block in self.next if region.holds(block)}
        if not entries:
            return
        place = self.flow.blocks[region.first].first
        inner = self.guard(entries, indent, place)
        passing = self.next - entries
        self.next, self.left = entries, set()
        self.add(inner, "while True:", place)
        self.write_region(number, inner + 1)
        left, self.left, self.region = self.left, outer_left, outer_number
        out = {block for block in left if not outer.holds(block)}
        back = {block for block in left - out if block <= region.last}
        self.leave(out, left, f"b < {outer.first} or b > {outer.last}", "break", inner, place)
        self.leave(back, left - out, f"b <= {region.last}", "continue", inner, place)
        self.left |= out
        self.again[outer_number] |= back
        self.next = passing | left - out - back

    def leave(self, some: Set[int], possible: Set[int], condition: str, how: str, indent: int, place: int) -> None:
        """Go `how` if one of `some` is next, where one of `possible` is."""
        if some and some == possible:
            self.add(indent, how, place)
        elif some:
            self.ask(possible)
            self.add(indent, f"if {condition}: {how}", place)

    def write_block(self, block: int, indent: int) -> bool:
        """A block and those written into it. True when nothing after it is reached from it."""
        body = self.bodies[block]
        for text, place in body.lines:
            self.add(indent, text, place)
        jump, fall = self.flow.blocks[block].jump, self.flow.blocks[block].fall
        if body.branch is not None and jump is not None and fall is not None:
            return self.write_branch(block, body.branch, jump, fall, indent)
        target = fall if jump is None else jump
        return True if target is None else self.go(block, target, indent)

    def write_branch(self, block: int, branch: Branch, jump: int, fall: int, indent: int) -> bool:
        """The two ways on from a block."""
        place = self.bodies[block].place
        self.add(indent, f"if {branch.condition}:", place)
        top = len(self.lines)
        for text in branch.on_jump:
            self.add(indent + 1, text, place)
        jump_leaves = self.go(block, jump, indent + 1)
        negate = len(self.lines) == top
        if negate:
            self.lines[top - 1] = ("    " * indent + f"if {branch.negated}:", place)
        elif not jump_leaves:
            self.add(indent, "else:", place)
        inner = indent + (not jump_leaves)
        bottom = len(self.lines)
        for text in branch.on_fall:
            self.add(inner, text, place)
        fall_leaves = self.go(block, fall, inner)
        if len(self.lines) == bottom and not jump_leaves:
            self.lines.pop()
        return jump_leaves and fall_leaves

    def go(self, block: int, target: int, indent: int) -> bool:
        """Go on from `block` at `target`. True when nothing after it is reached from here."""
        place = self.bodies[block].place
        if target <= block:
            for text in ROUND:
                self.add(indent, text, place)
        if self.flow.inlined[target]:
            return self.write_block(target, indent)
        region = self.flow.regions[self.region]
        inside = region.holds(target)
        if self.is_asked(target, self.region, inside):
            self.add(indent, f"b = {target}", place)
        if not inside:
            self.left.add(target)
            self.add(indent, "break", place)
        elif target > self.position:
            self.next.add(target)
            return False
        else:
            self.again[self.region].add(target)
            self.add(indent, "continue", place)
        return True

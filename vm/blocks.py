"""Basic blocks of a function, and how they lie in loops: what translated code is laid out by.

Blocks are numbered in the order of the code. An edge to the same or an earlier block closes a loop:
the blocks from its target to its source are a *region*. Regions nest; those that overlap are widened
until they do, so that any jumps at all can be laid out.
"""

from __future__ import annotations

from typing import Dict, List, Optional, Sequence, Tuple

from vm.named_tuple import NamedTuple
from vm.opcodes import BY_NAME
from vm.program import Function, Instruction

MAX_LOOPS = 12
"""Python takes 20 loops in one another; what lies deeper shares the loop around it."""
MAX_INLINED = 12
"""How many blocks are written into one another before a flat one is begun (Python takes 100 levels of indentation)."""


class Block(NamedTuple):
    """Instructions `first` to `last` that run one after the other, then on to other blocks (their numbers)."""

    first: int
    last: int
    jump: Optional[int]
    fall: Optional[int]

    @property
    def targets(self) -> List[int]:
        """Where it can go on, the jump first."""
        return [target for target in (self.jump, self.fall) if target is not None]


class Region(NamedTuple):
    """Blocks `first` to `last` that are laid out together: a loop, or (without a parent) the whole function."""

    first: int
    last: int
    parent: Optional[int]

    def holds(self, block: int) -> bool:
        """True for a block in the region, however deep."""
        return self.first <= block <= self.last


class Flow(NamedTuple):
    """A function's blocks, its regions (the function itself is number 0), and where each block belongs."""

    blocks: Tuple[Block, ...]
    regions: Tuple[Region, ...]
    home: Tuple[int, ...]
    """The innermost region of each block."""
    inlined: Tuple[bool, ...]
    """True for a block that is written where its only predecessor jumps or falls to it."""


def jump_target(instruction: Instruction) -> Optional[int]:
    """The instruction that an instruction can jump to."""
    place = BY_NAME[instruction.op].operands.find("j")
    return None if place < 0 else (instruction.a, instruction.b, instruction.c)[place]


def find_flow(function: Function) -> Flow:
    """The flow of a function that has passed the verifier."""
    blocks = find_blocks(function.code)
    regions = find_regions(blocks)
    home = [0] * len(blocks)
    for number, region in enumerate(regions):  # outer ones come first
        home[region.first : region.last + 1] = [number] * (region.last + 1 - region.first)
    return Flow(blocks, regions, tuple(home), find_inlined(blocks, home))


def find_blocks(code: Sequence[Instruction]) -> Tuple[Block, ...]:
    """Cut code at its jumps and their targets."""
    starts = {0}
    for place, instruction in enumerate(code):
        row = BY_NAME[instruction.op]
        if row.jumps or row.ends:
            starts.add(place + 1)
        target = jump_target(instruction)
        if target is not None:
            starts.add(target)
    starts.discard(len(code))
    order = sorted(starts)
    number = {start: position for position, start in enumerate(order)}
    blocks = []
    for start, end in zip(order, [*order[1:], len(code)]):
        target = jump_target(code[end - 1])
        ends = BY_NAME[code[end - 1].op].ends
        blocks.append(Block(start, end - 1, None if target is None else number[target], None if ends else number[end]))
    return tuple(blocks)


def find_regions(blocks: Sequence[Block]) -> Tuple[Region, ...]:
    """The whole function, then its loops, outer ones first, made to nest."""
    furthest: Dict[int, int] = {}
    for source, block in enumerate(blocks):
        for target in block.targets:
            if target <= source:
                furthest[target] = max(source, furthest.get(target, source))
    spans = nested(sorted(furthest.items()))
    regions = [Region(0, len(blocks) - 1, None)]
    inside = [0]
    for first, last in spans:
        while not regions[inside[-1]].holds(first):
            inside.pop()
        regions.append(Region(first, last, inside[-1]))
        inside.append(len(regions) - 1)
    return tuple(regions)


def nested(spans: Sequence[Tuple[int, int]]) -> List[Tuple[int, int]]:
    """Spans with different starts, in order of them: widened where they overlap without nesting.

    One that lies deeper than MAX_LOOPS is left out: the loop around it holds its blocks.
    """
    widened: List[List[int]] = []
    begun: List[List[int]] = []
    for first, last in spans:
        while begun and begun[-1][1] < first:
            begun.pop()
        for outer in begun:
            outer[1] = max(outer[1], last)
        if len(begun) < MAX_LOOPS:
            begun.append([first, last])
            widened.append(begun[-1])
    return [(first, last) for first, last in widened]


def find_inlined(blocks: Sequence[Block], home: Sequence[int]) -> Tuple[bool, ...]:
    """Which blocks are written into the one place that leads to them."""
    sources: List[List[int]] = [[] for _ in blocks]
    for source, block in enumerate(blocks):
        for target in block.targets:
            sources[target].append(source)
    depth = [0] * len(blocks)
    for number, places in enumerate(sources):
        if len(places) == 1 and number:
            source = places[0]
            if source < number and home[source] == home[number] and depth[source] < MAX_INLINED:
                depth[number] = depth[source] + 1
    return tuple([level > 0 for level in depth])

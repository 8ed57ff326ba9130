"""Writing LLVM IR for BPF programs: a list of lines with names for values, and the helpers by name.

Values are written as operands (`%12`, `7`); types stand where LLVM wants them. Nothing is optimised
afterwards but by the back end, so what is written here is what the verifier sees.

Source of the helpers' numbers and arguments: linux/bpf.h, bpf-helpers(7).
"""

from __future__ import annotations

import re
import sys
from typing import Callable, List, Set, Tuple

from vm.named_tuple import NamedTuple


class Helper(NamedTuple):
    """A BPF helper: its number, what it returns, and its arguments as LLVM types."""

    number: int
    result: str
    arguments: Tuple[str, ...] = ()


HELPERS = {
    "map_lookup": Helper(1, "ptr", ("ptr", "ptr")),
    "map_update": Helper(2, "i64", ("ptr", "ptr", "ptr", "i64")),
    "map_delete": Helper(3, "i64", ("ptr", "ptr")),
    "ktime_get_ns": Helper(5, "i64"),
    "get_smp_processor_id": Helper(8, "i32"),
    "get_current_pid_tgid": Helper(14, "i64"),
    "get_current_uid_gid": Helper(15, "i64"),
    "get_current_comm": Helper(16, "i64", ("ptr", "i32")),
    "perf_event_output": Helper(25, "i64", ("ptr", "ptr", "i64", "ptr", "i64")),
    "get_current_task": Helper(35, "i64"),
    "get_func_ip": Helper(173, "i64", ("ptr",)),
    "get_attach_cookie": Helper(174, "i64", ("ptr",)),
    "get_stack": Helper(67, "i64", ("ptr", "ptr", "i32", "i64")),
    "get_current_cgroup_id": Helper(80, "i64"),
    "get_current_task_btf": Helper(158, "ptr"),
    "task_pt_regs": Helper(175, "ptr", ("ptr",)),
    "probe_read_either": Helper(4, "i64", ("ptr", "i32", "i64")),
    "probe_read_either_str": Helper(45, "i64", ("ptr", "i32", "i64")),
    "probe_read_user": Helper(112, "i64", ("ptr", "i32", "i64")),
    "probe_read_kernel": Helper(113, "i64", ("ptr", "i32", "i64")),
    "probe_read_user_str": Helper(114, "i64", ("ptr", "i32", "i64")),
    "probe_read_kernel_str": Helper(115, "i64", ("ptr", "i32", "i64")),
    "copy_from_user": Helper(148, "i64", ("ptr", "i32", "i64")),
    "this_cpu_ptr": Helper(154, "ptr", ("ptr",)),
    "ringbuf_reserve": Helper(131, "ptr", ("ptr", "i64", "i64")),
    "ringbuf_submit": Helper(132, "void", ("ptr", "i64")),
    "ringbuf_reserve_dynptr": Helper(198, "i64", ("ptr", "i32", "i64", "ptr")),
    "ringbuf_submit_dynptr": Helper(199, "void", ("ptr", "i64")),
    "ringbuf_discard_dynptr": Helper(200, "void", ("ptr", "i64")),
    "dynptr_write": Helper(202, "i64", ("ptr", "i32", "ptr", "i32", "i64")),
}

PURE = frozenset({"get_smp_processor_id", "get_current_pid_tgid", "get_current_task", "get_current_task_btf"})
"""Helpers whose call is left out where nothing uses the result: the back end takes every call for one that matters."""

MARK = 0x6B746170
"""The number of a helper that there is not: its call marks a place where a loop may end (see `compiler.bpf`)."""

BITS = {1: "i8", 2: "i16", 4: "i32", 8: "i64"}
"""Integer types by size in bytes."""


class Writer:
    """The body of one program. `ctx` is its argument; a path that ends does so at the label `out`."""

    def __init__(self) -> None:
        self._stack: List[str] = []
        self._lines: List[str] = []
        self._globals: Set[str] = set()
        self._pure: List[str] = []
        """Results of PURE helpers."""
        self._count = 0
        self.result = 0
        """What the program returns."""
        self.leaving = ""
        """Lines behind the label `out`."""

    def fresh(self, prefix: str = "v") -> str:
        """A name that nothing has yet, without its `%`."""
        self._count += 1
        return f"{prefix}{self._count}"

    def value(self, instruction: str) -> str:
        """Emit an instruction that has a result; its operand."""
        name = f"%{self.fresh()}"
        self._lines.append(f"  {name} = {instruction}")
        return name

    def do(self, instruction: str) -> None:
        """Emit an instruction without a result."""
        self._lines.append(f"  {instruction}")

    def label(self, name: str) -> None:
        """Start a block; the one before it must have been ended."""
        self._lines.append(f"{name}:")

    def goto(self, label: str) -> None:
        """End the block with a jump."""
        self.do(f"br label %{label}")

    def branch(self, condition: str, yes: str, no: str) -> None:
        """End the block with a choice by an i1."""
        self.do(f"br i1 {condition}, label %{yes}, label %{no}")

    def may_go(self, label: str) -> None:
        """Go to a label once the kernel finds that the program has looped for too long (see `compiler.bpf.MARK`)."""
        following = self.fresh("l")
        mark = self.value(f"call i64 inttoptr (i64 {MARK} to ptr)()")
        self.branch(self.value(f"icmp eq i64 {mark}, 0"), label, following)
        self.label(following)

    def only_if(self, condition: str, otherwise: str = "out") -> None:
        """Go on where the condition holds, else at a label."""
        following = self.fresh("l")
        self.branch(condition, following, otherwise)
        self.label(following)

    def reference(self, name: str) -> str:
        """A global that is filled in at load time: a map, as an operand of type ptr."""
        self._globals.add(name)
        return f"@{name}"

    def number(self, name: str) -> str:
        """A number that is filled in at load time, as an i64."""
        return self.value(f"ptrtoint ptr {self.reference(name)} to i64")

    def local(self, size_bytes: int, name: str = "") -> str:
        """Room on the stack, aligned to 8. Rooms of one name and size are one room, for uses that do not overlap."""
        words = (size_bytes + 7) // 8
        room = f"%{name}_{words}" if name else f"%{self.fresh('room')}"
        line = f"  {room} = alloca [{words} x i64], align 8"
        if line not in self._stack:
            self._stack.append(line)
        return room

    def index(self, number: int) -> str:
        """The key of an entry of an array, for a lookup that follows at once."""
        room = self.local(4, "index")
        self.store(4, number, room)
        return room

    def at(self, base: str, offset: int | str) -> str:
        """The address `offset` bytes (a number or an i64) behind a pointer."""
        return base if offset == 0 else self.value(f"getelementptr i8, ptr {base}, i64 {offset}")

    def load(self, size_bytes: int, base: str, offset: int | str = 0) -> str:
        """An integer of 1, 2, 4 or 8 bytes, of its own type; byte by byte where it is not aligned."""
        if isinstance(offset, int) and offset % size_bytes:
            return self._gathered(size_bytes, base, offset)
        return self.value(f"load {BITS[size_bytes]}, ptr {self.at(base, offset)}, align {size_bytes}")

    def _gathered(self, size_bytes: int, base: str, offset: int) -> str:
        kind = BITS[size_bytes]
        total = ""
        for place in range(size_bytes):
            byte = self.value(f"zext i8 {self.load(1, base, offset + place)} to {kind}")
            shift = 8 * place if sys.byteorder == "little" else 8 * (size_bytes - 1 - place)
            byte = self.value(f"shl {kind} {byte}, {shift}") if shift else byte
            total = self.value(f"or {kind} {total}, {byte}") if total else byte
        return total

    def load_wide(self, size_bytes: int, signed: bool, base: str, offset: int = 0) -> str:
        """An integer of 1, 2, 4 or 8 bytes, extended to i64."""
        return self.widened(self.load(size_bytes, base, offset), size_bytes, signed)

    def widened(self, value: str, size_bytes: int, signed: bool) -> str:
        """An integer extended to i64."""
        if size_bytes == 8:
            return value
        return self.value(f"{'sext' if signed else 'zext'} {BITS[size_bytes]} {value} to i64")

    def narrowed(self, value: str, size_bytes: int) -> str:
        """An i64 cut to fewer bytes."""
        return value if size_bytes == 8 else self.value(f"trunc i64 {value} to {BITS[size_bytes]}")

    def store(self, size_bytes: int, value: str | int, base: str, offset: int = 0) -> None:
        """Store an integer of its own type."""
        self.do(f"store {BITS[size_bytes]} {value}, ptr {self.at(base, offset)}, align {size_bytes}")

    def text_bytes(self, result: str) -> str:
        """What a helper that reads strings says: the bytes with the NUL, or an error.

        Of an empty string of a process Linux before 6.14 says 0 (strncpy_from_user_nofault).
        """
        return self.value(f"select i1 {self.value(f'icmp eq i64 {result}, 0')}, i64 1, i64 {result}")

    def call(self, helper: str, *arguments: str | int) -> str:
        """Call a helper; the operand of its result ("" where it has none)."""
        row = HELPERS[helper]
        given = ", ".join(f"{kind} {argument}" for kind, argument in zip(row.arguments, arguments))
        text = f"call {row.result} inttoptr (i64 {row.number} to ptr)({given})"
        if row.result == "void":
            self.do(text)
            return ""
        result = self.value(text)
        if helper in PURE:
            self._pure.append(result)
        return result

    def lookup(self, map_name: str, key: str, otherwise: str = "out") -> str:
        """The value under the key that a pointer points at; goes to `otherwise` where there is none."""
        found = self.call("map_lookup", self.reference(map_name), key)
        self.only_if(self.value(f"icmp ne ptr {found}, null"), otherwise)
        return found

    def mark(self) -> int:
        """The current place, for `splice`."""
        return len(self._lines)

    def splice(self, mark: int, emit: Callable[[], None]) -> None:
        """Emit something at an earlier place, one that a jump follows at once."""
        later = self._lines[mark:]
        del self._lines[mark:]
        emit()
        self._lines += later

    def text(self) -> str:
        """The whole module, without the target's header."""
        for result in self._pure:
            self._drop_unused(result)
        references = "".join(f"@{name} = external global i8\n" for name in sorted(self._globals))
        body = "\n".join(["entry:", *self._stack, "  br label %start", "start:", *self._lines])
        end = f"out:\n{self.leaving}  ret i32 {self.result}\n"
        return f'{references}define i32 @program(ptr %ctx) section "tracing" {{\n{body}\n{end}}}\n'

    def _drop_unused(self, result: str) -> None:
        """Take out the line that makes a value that no other line names."""
        named = re.compile(rf"{result}\b")
        lines = [line for line in self._lines if result in line and named.search(line)]
        if len(lines) == 1:
            self._lines.remove(lines[0])

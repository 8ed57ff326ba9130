"""The `ffi` library: memory of an event seen through C types. Nothing is called and nothing is written.

What needs the parser of C declarations imports it when it is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional, Union

from vm.fault import Fault
from vm.library.builtin import NOTHING, Machine, builtin, made
from vm.library.reads import captured
from vm.values import Cdata, wrap

if TYPE_CHECKING:
    from vm.cdata import Memory
    from vm.declaration import Declarations

INSTEAD = {
    "printk": "print or printf",
    "_printk": "print or printf",
    "printf": "printf",
    "get_current": "curtask",
    "smp_processor_id": "cpu",
    "ktime_get": "nsecs",
    "ktime_get_ns": "nsecs",
    "sched_clock": "nsecs",
    "cpu_clock": "nsecs",
    "do_gettimeofday": "gettimeofday_us()",
    "ktime_get_real": "gettimeofday_ns()",
    "dump_stack": "print_backtrace()",
    "save_stack_trace": "stack()",
    "strlen": "len or string.len",
    "strstr": "string.find",
    "strncpy_from_user": "user_string(p)",
    "copy_from_user": "user_buf(p, n)",
    "probe_kernel_read": "kernel_u64(p), or ffi.cast",
    "num_online_cpus": "num_cpus()",
}
"""Functions of the kernel that scripts called, and what does the same here."""

NOT_CAPTURED = "members of an argument can be read as args.NAME.member, bytes of it by user_buf and ffi.new"


def declarations(machine: Machine) -> Declarations:
    """The script's declarations; they stand in front of the types the machine was given."""
    from vm.declaration import Declarations

    if not isinstance(machine.types, Declarations):
        architecture = machine.host.architecture()
        pointer_bytes = 8 if "64" in architecture or architecture == "s390x" else 4
        machine.types = Declarations(machine.types, pointer_bytes, char_signed=architecture.startswith(("x86", "i")))
    return machine.types


def event_memory(machine: Machine) -> Memory:
    """Reads what was captured with the event. The upper half of all addresses is the kernel's."""

    def read(address: int, size: int) -> Optional[bytes]:
        half = 1 << (8 * declarations(machine).pointer_bytes - 1)
        space = "kernel" if address & half else "user"
        found = captured(machine, "ffi.cast", space, "bytes", wrap(address), size, NOT_CAPTURED)
        return found if found is not None and len(found) >= size else None

    return read


@builtin("ffi.cdef", "declarations: string", "", ("argument",))
def cdef(machine: Machine, depth: int, text: bytes) -> object:
    """declare C types: structures, unions, enumerations, typedefs"""
    declarations(machine).declare(text.decode("utf-8", "replace"))
    return NOTHING


@builtin("ffi.cast", "type: string, x?: integer|cdata", "cdata or integer", ("argument",))
def cast(machine: Machine, depth: int, type_text: bytes, x: Union[int, Cdata, None] = None) -> object:
    """x as a pointer of a C type, whose members read memory of the event; as an integer where the type is one"""
    from vm.c_types import Integer, Pointer, show
    from vm.cdata import View

    scope = declarations(machine)
    type = scope.resolve(scope.type_named(type_text.decode("utf-8", "replace")))
    if x is None:
        return None
    number = x.address if isinstance(x, Cdata) else int(x)
    if isinstance(type, Pointer):
        memory = event_memory(machine)
        return View(scope, memory, memory).pointer(type.target, number)
    if isinstance(type, Integer):
        low = number & ((1 << 8 * type.size_bytes) - 1)
        negative = type.signed and low >> (8 * type.size_bytes - 1)
        return wrap(low - (1 << 8 * type.size_bytes) if negative else low)
    raise Fault("argument", f"ffi.cast: `{show(type)}` is neither a pointer nor an integer type")


@builtin("ffi.sizeof", "type: string", "integer", ("argument",))
def sizeof(machine: Machine, depth: int, type_text: bytes) -> int:
    """how many bytes a C type takes"""
    scope = declarations(machine)
    return scope.size_bytes(scope.type_named(type_text.decode("utf-8", "replace")))


@builtin("ffi.new", "type: string, bytes?: string", "cdata", ("argument", "string", "memory"))
def new(machine: Machine, depth: int, type_text: bytes, data: Optional[bytes] = None) -> Cdata:
    """a C type over bytes (of user_buf, say), zeros where they are too few; it is read only"""
    from vm.cdata import Buffer, View

    scope = declarations(machine)
    type = scope.type_named(type_text.decode("utf-8", "replace"))
    size_bytes = scope.size_bytes(type)
    if size_bytes > machine.limits.string_bytes:
        raise machine.account.string_fault()
    content = machine.account.built((data or b"")[:size_bytes].ljust(size_bytes, b"\0"))
    return View(scope, Buffer(content).read, event_memory(machine)).pointer(type, 0)


@made("ffi.C", "", "cdata", ("argument",))
def make_c(machine: Machine) -> Cdata:
    """constants of enumerations that were declared; functions of the kernel cannot be called"""

    def member(key: object) -> object:
        name = key.decode("utf-8", "replace") if isinstance(key, bytes) else "?"
        enumerators = declarations(machine).enumerators
        if name in enumerators:
            return enumerators[name]
        instead = INSTEAD.get(name)
        hint = "the builtins read and print all that a script may" if instead is None else f"use {instead}"
        raise Fault("argument", f"ffi.C.{name}: no function of the kernel can be called", hint)

    return Cdata("ffi.C", 0, member)

"""The machine and the running task: num_cpus, arch, kernel_v, curr_taskinfo, in_interrupt, in_iowait."""

from __future__ import annotations

from vm.fault import Fault
from vm.library.builtin import KERNEL, Machine, builtin


def state(machine: Machine, builtin_name: str, name: str) -> object:
    """What the event tells of its task; nil outside of one."""
    if machine.event is None:
        return None
    try:
        return machine.event.state(name)
    except LookupError:
        raise Fault("event", f"{builtin_name}: `{name}` was not captured for this event") from None


@builtin("num_cpus", "", "integer")
def num_cpus(machine: Machine, depth: int) -> int:
    """how many processors are online"""
    return machine.host.cpus()


@builtin("arch", "", "string")
def arch(machine: Machine, depth: int) -> bytes:
    """the architecture, as in uname -m"""
    return machine.host.architecture().encode()


@builtin("kernel_v", "", "string")
def kernel_v(machine: Machine, depth: int) -> bytes:
    """the kernel's release, as in uname -r"""
    return machine.host.kernel_release().encode()


@builtin("curr_taskinfo", "name: string", "any", ("event",), KERNEL)
def curr_taskinfo(machine: Machine, depth: int, name: bytes) -> object:
    """a member of the running task, such as `pid`"""
    return state(machine, "curr_taskinfo", name.decode("utf-8", "replace"))


@builtin("in_interrupt", "", "boolean", ("event",), KERNEL)
def in_interrupt(machine: Machine, depth: int) -> object:
    """whether the event fired in an interrupt"""
    return state(machine, "in_interrupt", "in_interrupt")


@builtin("in_iowait", "", "boolean", ("event",), KERNEL)
def in_iowait(machine: Machine, depth: int) -> object:
    """whether the running task waits for a device"""
    return state(machine, "in_iowait", "in_iowait")

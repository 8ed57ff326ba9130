"""`ktap list 'probe:vfs_*'`: functions of the kernel that can be probed, with their parameters."""

from __future__ import annotations

from typing import List

from ktap.btf import kernel_types
from ktap.functions import kernel_functions, near_tracepoints
from vm.c_types import show
from vm.diagnostic import Diagnostic, Refusal

PREFIX, FTRACE = "probe:", "ftrace"


WITHOUT_TYPES = (
    "    arg1 …  the call's arguments, by the calling convention: this kernel does not tell their types (BTF)",
    "    retval  what it returns (with %return)",
)


def list_functions(pattern: str, verbose: bool) -> str:
    """Functions by glob (`probe:vfs_*`, `probe:` for all), one a line; `verbose` adds the types of their parameters.

    Raises Refusal: where nothing matches, or (status 3) where the kernel cannot probe its functions.
    """
    kind, _, glob = pattern.partition(":")
    glob = "*" if kind == FTRACE else glob or "*"
    functions = kernel_functions()
    if not functions.can_be_probed():
        near = near_tracepoints(glob)
        hint = f"tracepoints that come near: {', '.join(near)}" if near else "ktap list shows the tracepoints"
        raise _refusal("this kernel cannot probe its functions: it was built without kprobes", hint, 3)
    names = list(functions.matching(glob)) or ([glob] if functions.addresses([glob]) else [])
    if not names:
        raise _refusal(f"no function of the kernel matches `{glob}`", _meant(glob), 1)
    types = kernel_types()
    prototypes = types.functions(names) if types is not None else {}
    lines: List[str] = []
    for name in names:
        prototype = prototypes.get(name)
        arguments = prototype.arguments if prototype is not None else ()
        if not verbose:
            lines.append(" ".join([PREFIX + name, *(one.name for one in arguments)]))
            continue
        lines.append(PREFIX + name)
        lines += [f"    arg{n}  args.{one.name}  {show(one.type)}" for n, one in enumerate(arguments, 1)]
        if prototype is not None:
            lines.append(f"    retval  {show(prototype.result)}  (with %return)")
    if verbose:
        lines += ["each has", "    arg0    its address", *([] if types else WITHOUT_TYPES)]
    return "".join(f"{line}\n" for line in lines)


def _meant(name: str) -> str:
    near = kernel_functions().near(name)
    return f"did you mean `{PREFIX}{near[0]}`?" if near else "ktap list 'probe:*' shows them"


def _refusal(message: str, hint: str, status: int) -> Refusal:
    return Refusal([Diagnostic("ktap", None, message, hint)], status=status)

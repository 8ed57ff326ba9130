"""What the kernel's verifier has against a program."""

from __future__ import annotations

import errno
import os
from typing import Optional

from ktap import kernel

NOT_THE_PROGRAM = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR, errno.ENOSYS)
"""What keeps any program from being loaded."""
LOG_BYTES = 1 << 20
"""Of the verifier's log; newer kernels keep its end where there is more."""
LOG_SUMMARY = ("processed ", "verification time", "stack depth")
"""How the lines behind the verifier's reason begin."""


REFUSED = "is refused by the kernel's verifier"
TOO_LARGE = "it takes too many steps to check", "do less in one handler, or in fewer branches"
NO_STACK = "it needs more than the 512 bytes of stack that programs have", "keep fewer values at a time"
MEANINGS = (
    ("BPF program is too large", TOO_LARGE),
    ("The sequence of", TOO_LARGE),
    ("combined stack size of", NO_STACK),
    ("invalid write to stack R10", NO_STACK),
    ("invalid read from stack R10", NO_STACK),
)
"""What the beginning of a line of the log means for the script, and what would change it (kernel/bpf/verifier.c)."""


class Unfit(Exception):
    """The kernel does not take a program; the text is the end of a sentence about it."""

    def __init__(self, text: str, remedy: Optional[str] = None) -> None:
        super().__init__(text)
        self.remedy = remedy


def check(kind: int, instructions: bytes, attach_type: int = 0, flags: int = 0) -> None:
    """Load a program and let go of it. Raises Unfit, and OSError where it is not for the program's sake."""
    try:
        os.close(kernel.load(kind, instructions, flags=flags, attach_type=attach_type))
    except OSError as error:
        if error.errno in NOT_THE_PROGRAM:
            raise
        raise unfit(reason(kind, instructions, attach_type, flags)) from error


def unfit(line: str) -> Unfit:
    """What the verifier says of a program, and what it means if that is known."""
    for beginning, (meaning, remedy) in MEANINGS:
        if line.startswith(beginning):
            return Unfit(f"{REFUSED}: {meaning} ({line})", remedy)
    return Unfit(f"{REFUSED}: {line}")


def reason(kind: int, instructions: bytes, attach_type: int, flags: int) -> str:
    """The line of the verifier's log that says what is wrong."""
    try:
        os.close(kernel.load(kind, instructions, LOG_BYTES, flags, attach_type=attach_type))
    except OSError as error:
        text = error.strerror or ""
        lines = [line.strip() for line in text.splitlines() if line and not line.startswith(LOG_SUMMARY)]
        return lines[-1] if lines else text
    return "it takes it at another time"

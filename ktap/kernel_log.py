"""What the kernel only writes to its log: returns of user functions that it leaves out.

The kernel keeps up to 64 returns of one thread waiting. A call that is nested deeper is probed at its entry, but not at
its return, and nobody counts that; the log has a line for it, as long as there are few.

Source: kernel/events/uprobes.c (prepare_uretprobe, MAX_URETPROBE_DEPTH), Documentation/ABI/testing/dev-kmsg.
"""

from __future__ import annotations

import errno
import os
from typing import List, Optional, Sequence

from ktap.capture import USER_RETURN
from ktap.plan import Captured
from vm.event import Loss

PATH = "/dev/kmsg"
LEFT_OUT = b"omit uretprobe due to nestedness limit"
TOO_DEEP = "returns of calls more than 64 deep, at least so many"
MOST_RECORD_BYTES = 8192


class KernelLog:
    """The log from now on, where an event is a return and the log may be read."""

    def __init__(self, events: Sequence[Captured], path: str = PATH) -> None:
        labels = [event.wanted.label for event in events if event.wanted.context == USER_RETURN]
        self._where = labels[0] if len(labels) == 1 else f"{len(labels)} returns"
        self._file: Optional[int] = None
        self._left_out = 0
        if labels:
            try:
                self._file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                os.lseek(self._file, 0, os.SEEK_END)
            except OSError:  # not everyone may read it; then this remains unsaid, as the README does
                self.close()

    def losses(self) -> List[Loss]:
        """The returns that were left out since."""
        while self._file is not None:
            try:
                record = os.read(self._file, MOST_RECORD_BYTES)
            except OSError as error:
                if error.errno == errno.EPIPE:  # records were overwritten; it goes on with the oldest that is left
                    continue
                break
            if not record:
                break
            self._left_out += LEFT_OUT in record
        return [Loss(TOO_DEEP, self._where, self._left_out)] if self._left_out else []

    def close(self) -> None:
        """Let go of the log."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

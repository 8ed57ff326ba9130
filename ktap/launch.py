"""How the ktap command starts: what was attached last time first, then everything else.

Nothing is imported here that takes long: see ktap.early.
"""

from __future__ import annotations

import gc
import os
import sys

from ktap import early

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


LOADING_OBJECTS = 100_000
"""So many objects are made before Python looks for garbage among them: what is loaded stays, and a look at all of it again
and again takes a twelfth of a start."""


def start() -> NoReturn:
    """What the `ktap` program is, and then no more of Python's own way out, a tenth of a short run."""
    try:
        gc.set_threshold(LOADING_OBJECTS)
        early.begin(sys.argv[1:])
        from ktap.cli import main

        status = main()
    except KeyboardInterrupt:
        status = 130
    os._exit(status)

"""How the ktap command starts: what was attached last time first, then everything else.

Nothing is imported here that takes long: see ktap.early.
"""

from __future__ import annotations

import os
import sys

from ktap import early

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def start() -> NoReturn:
    """What the `ktap` program is, and then no more of Python's own way out, a tenth of a short run."""
    try:
        early.begin(sys.argv[1:])
        from ktap.cli import main

        status = main()
    except KeyboardInterrupt:
        status = 130
    os._exit(status)

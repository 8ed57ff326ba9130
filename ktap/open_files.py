"""The limit of open files: every perf event and every link is one."""

from __future__ import annotations

import resource

SPARE_FILES = 64


def allow_files(count: int) -> None:
    """Raise the limit of open files, if need be, as far as the process may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count + SPARE_FILES:
        wanted = count + SPARE_FILES
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard) if hard > 0 else wanted, hard))

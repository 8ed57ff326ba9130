"""ktap: a dynamic tracer for Linux."""

import compiler
import vm

__version__ = "0.5.0"

for _package in (compiler, vm):
    if _package.__path__[0].rpartition("/")[0] != __path__[0].rpartition("/")[0]:
        raise SystemExit(f"ktap: another package named {_package.__name__} hides ktap's own: {_package.__path__[0]}")

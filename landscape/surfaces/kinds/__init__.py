"""One file for each kind of surface. A new file in this folder is a new kind: no list elsewhere names it."""

import importlib
import pkgutil

from landscape.surfaces.kind import SURFACE_KINDS

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["SURFACE_KINDS"]

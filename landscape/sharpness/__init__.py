"""Sharpness: every definition that papers use, through one call.

`compute` measures any metric, `checking` sees beforehand whether it can, `site` is where a metric measures. Metrics are
the functions in the folder `metrics`; `registry` is their table, `registered` fills it, and `options` knows their
options without importing them.

The names of the room are listed in `__init__.pyi`. A name is loaded when it is first used, so that `options` does not
wait for torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

del lazy_loader

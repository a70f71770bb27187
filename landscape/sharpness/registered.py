"""The table of metrics, filled: every module of the folder `metrics` is imported here, and so registered.

A new metric is a function with the decorator `registry.metric` in any of them, or in a new one.
"""

import importlib
import pkgutil

from landscape.sharpness import metrics
from landscape.sharpness.registry import SHARPNESS_METRICS, check_metric

__all__ = ["SHARPNESS_METRICS", "check_metric"]

for _module in pkgutil.iter_modules(metrics.__path__, f"{metrics.__name__}."):
    importlib.import_module(_module.name)

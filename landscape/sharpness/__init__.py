"""Sharpness: every definition that papers use, through one call.

Importing this package imports every module of its folder `metrics`, and so registers what they define: a new metric is
a function with the decorator `registry.metric` in any of them, or in a new one.
"""

import importlib
import pkgutil

from landscape.sharpness import metrics
from landscape.sharpness.compute import compute_sharpness
from landscape.sharpness.registry import SHARPNESS_METRICS, check_metric
from landscape.sharpness.result import Sharpness

__all__ = ["SHARPNESS_METRICS", "Sharpness", "check_metric", "compute_sharpness"]

for _module in pkgutil.iter_modules(metrics.__path__, f"{metrics.__name__}."):
    importlib.import_module(_module.name)

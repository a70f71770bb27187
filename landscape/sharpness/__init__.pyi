"""The names that other rooms use, each with the module it lives in; `__init__.py` reads this file."""

from .compute import compute_sharpness as compute_sharpness
from .registered import SHARPNESS_METRICS as SHARPNESS_METRICS
from .registered import check_metric as check_metric
from .result import Sharpness as Sharpness

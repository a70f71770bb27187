"""The options of sharpness metrics: which there are and what they may be, known without importing a metric.

The modules of the folder `metrics` import torch, which takes seconds. What they declare is read from their source here,
so that a command can refuse a mistyped metric at once.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import math
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from landscape.errors import InputError, as_typed, nearest


class Described(Protocol):
    """What is known of a metric, registered or only declared."""

    @property
    def options(self) -> Mapping[str, Any]:
        """The options, with their defaults."""

    @property
    def needs_base(self) -> bool:
        """Whether it takes the base checkpoint."""


@dataclasses.dataclass(frozen=True)
class Declared:
    """What the source of a metric says of it.

    Attributes:
        options: The options, with their defaults.
        needs_base: Whether it takes the base checkpoint.
    """

    options: Mapping[str, Any]
    needs_base: bool


@functools.cache
def declared_metrics() -> dict[str, Declared]:
    """Return every metric of the folder `metrics` by its name, read from the source of its modules.

    Example:
        >>> declared_metrics()["low_pass"].options
        {'sigma': 0.01, 'samples': 32}
    """
    paths = sorted((Path(__file__).parent / "metrics").glob("*.py"))
    return {name: metric for path in paths for name, metric in _declared_in(path.read_text(encoding="utf-8"))}


def _declared_in(source: str) -> Iterator[tuple[str, Declared]]:
    """Yield name and declaration of every function that is decorated with `metric(...)`."""
    for node in ast.parse(source).body:
        for call in node.decorator_list if isinstance(node, ast.FunctionDef) else ():
            assert isinstance(node, ast.FunctionDef)
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "metric":
                words = {word.arg: word.value for word in call.keywords}
                pairs = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
                options = {option.arg: _constant(default) for option, default in pairs}
                needs_base = "needs_base" in words and ast.literal_eval(words["needs_base"])
                yield ast.literal_eval(call.args[0]), Declared(options, needs_base)


def _constant(expression: ast.expr | None) -> Any:
    """Return the value of an expression of numbers and texts; None for one that needs the names of its module."""
    if expression is None:
        return None
    try:
        return eval(compile(ast.Expression(expression), "<default>", "eval"), {"__builtins__": {}})
    except NameError:
        return None


# What an option of this name must be, whichever metric it belongs to, where it is given and not None.
_POSITIVE = ("rho", "sigma", "target", "tolerance", "rtol", "gamma", "nbeta")
_LEAST = {"steps": 1, "restarts": 1, "m": 1, "chains": 2, "max_matvecs": 1, "max_probes": 2, "samples": 1}
_WORDS = {
    "norm": ("l2", "linf"),
    "curvature": ("hessian", "ggn"),
    "method": ("auto", "hutchinson", "hutch++", "forward"),
}


def check_options(
    metric: str, options: Mapping[str, Any], *, known: Mapping[str, Described], has_base: bool
) -> dict[str, Any]:
    """Return all options of a metric, with defaults filled in.

    Args:
        metric: The name of the metric.
        options: The options that differ from their defaults.
        known: The metrics that there are.
        has_base: Whether the base checkpoint is given.

    Raises:
        InputError: The name or an option does not exist, an option has a value that makes no sense, or the base is
            missing.
    """
    check_name(metric, known)
    own = known[metric].options
    unknown = [name for name in options if name not in own]
    if unknown:
        raise InputError(
            f"{as_typed('metric', metric)} has no option {unknown[0]}; it has {', '.join(own) if own else 'none'}."
            f"{nearest(unknown[0], own)}"
        )
    for name, value in options.items():
        _check_kind(metric, name, value, own[name])
        if metric in declared_metrics():  # another's option of the same name may mean something else
            _check_range(metric, name, value)
    if known[metric].needs_base and not has_base:
        raise InputError(
            f"{as_typed('metric', metric)} measures along the step from a base checkpoint; give {as_typed('base')}."
        )
    return {**own, **options}


def check_name(metric: str, names: Collection[str]) -> None:
    """Raise InputError unless a metric is one of `names`."""
    if metric not in names:
        raise InputError(f"{as_typed('metric', metric)} is none of {', '.join(names)}.{nearest(metric, names)}")


def _check_kind(metric: str, name: str, value: Any, default: Any) -> None:
    """Raise InputError unless a value is of the kind of the default."""
    numeric = isinstance(default, (int, float)) and not isinstance(default, bool)
    if (numeric and (isinstance(value, (bool, str)) or value is None)) or (
        isinstance(default, bool) and not isinstance(value, bool)
    ):
        raise InputError(f"{name}={value!r} of metric {metric!r} must be like its default, {default!r}.")


def _check_range(metric: str, name: str, value: Any) -> None:
    """Raise InputError for a value that makes no sense for an option of that name."""
    if value is None:
        return
    wrong = f"{name}={value!r} of metric {metric!r}"
    if name in _WORDS and value not in _WORDS[name]:
        raise InputError(f"{wrong} is none of {', '.join(_WORDS[name])}.{nearest(str(value), _WORDS[name])}")
    if name not in _POSITIVE and name not in _LEAST:
        return
    if isinstance(value, (bool, str)):
        raise InputError(f"{wrong} must be a number.")
    if name in _POSITIVE and not 0 < value < math.inf:
        raise InputError(f"{wrong} must be positive and finite.")
    if name in _LEAST and not (isinstance(value, int) and value >= _LEAST[name]):
        raise InputError(f"{wrong} must be a whole number of at least {_LEAST[name]}.")

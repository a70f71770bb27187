"""The table of metrics: a metric is a function of a site, registered under a name with what a reader should know."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

from landscape.sharpness.options import check_options
from landscape.sharpness.result import Measurement


@dataclasses.dataclass(frozen=True)
class Metric:
    """A sharpness metric, and what `landscape metrics` prints of it.

    Attributes:
        name: What `compute_sharpness(metric=...)` takes.
        measure: The function: `measure(site, *, option=default, ...)` returns a `Measurement`.
        formula: The value as a formula in the loss L, its gradient g, its Hessian H and the weights w.
        cost: What it takes, in losses, gradients or products with the Hessian over the data.
        invariance: Which changes of the weights that preserve the model's function leave the value alone: rotations
            are orthogonal maps (permutations are among them), and shifts add a vector, as the softmax allows for the
            rows of an output head. Parts for different options are separated by semicolons.
        source: The authors and the year of its definition.
        needs_base: Whether it measures at the base checkpoint, along the step to the tuned one.
        resolve: A function that fills in options whose default depends on other options; None where there is none.

    Example:
        >>> from landscape import SHARPNESS_METRICS
        >>> SHARPNESS_METRICS["trace"].formula, SHARPNESS_METRICS["gradient_norm"].options
        ('tr H = sum_i H_ii', {'adaptive': False})
    """

    name: str
    measure: Callable[..., Measurement]
    formula: str
    cost: str
    invariance: str
    source: str
    needs_base: bool
    resolve: Callable[[dict[str, Any]], dict[str, Any]] | None = None

    @property
    def description(self) -> str:
        """The first line of the function's docstring."""
        return (inspect.getdoc(self.measure) or "").partition("\n")[0]

    @property
    def options(self) -> dict[str, Any]:
        """The options of the metric, with their defaults."""
        parameters = inspect.signature(self.measure).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


# Every sharpness metric by its name, which `landscape metrics` prints. `registered` fills the table: it
# imports the modules of the folder `metrics`, in the order of their names.
SHARPNESS_METRICS: dict[str, Metric] = {}


def metric(
    name: str,
    *,
    formula: str,
    cost: str,
    invariance: str,
    source: str,
    needs_base: bool = False,
    resolve: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> Callable[[Callable[..., Measurement]], Any]:
    """Register a function `measure(site, *, option=default, ...) -> Measurement` as a sharpness metric.

    A function with this decorator in any module of the folder `landscape/sharpness/metrics` is all that a new metric
    takes. Its keyword-only arguments become the options, and the first line of its docstring the description.

    Args:
        name: The name of the metric.
        formula: The value as a formula.
        cost: What it takes, in losses, gradients or products with the Hessian over the data.
        invariance: Which changes of the weights that preserve the model's function leave the value alone.
        source: The authors and the year of its definition.
        needs_base: The site is then at the base checkpoint, and `site.displacement` leads to the tuned one.
        resolve: Fills in options whose default depends on other options, so that results say what was done.
    """

    def register(measure: Callable[..., Measurement]) -> Callable[..., Measurement]:
        SHARPNESS_METRICS[name] = Metric(name, measure, formula, cost, invariance, source, needs_base, resolve)
        return measure

    return register


def check_metric(metric: str, options: dict[str, Any], *, has_base: bool) -> tuple[Metric, dict[str, Any]]:
    """Return the metric of that name, and its options with defaults filled in.

    Args:
        metric: The name.
        options: The options that differ from their defaults.
        has_base: Whether the base checkpoint is given.

    Raises:
        InputError: The name or an option does not exist, a value makes no sense, or the base is missing.
    """
    settings = check_options(metric, options, known=SHARPNESS_METRICS, has_base=has_base)
    chosen = SHARPNESS_METRICS[metric]
    return chosen, chosen.resolve(settings) if chosen.resolve else settings

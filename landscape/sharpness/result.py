"""What measuring a sharpness returns."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from landscape.results import Provenance, Result
from landscape.weights.perturbation import Fidelity

CONFIDENCE = 0.95  # of every confidence interval of a sharpness


@dataclasses.dataclass(frozen=True)
class Sharpness(Result):
    """One sharpness of one model on one data set.

    Attributes:
        metric: The name of the metric; `SHARPNESS_METRICS` describes it.
        name: The name of the checkpoint.
        data: The name of the data set.
        value: The sharpness, in the unit of its metric.
        stderr: The standard error over samples; None where nothing is sampled.
        loss: The loss of the unperturbed model, in nats per term.
        perturbed_loss: The loss at the place that the value speaks of; the mean over places for averages.
        rho: The size of the perturbation, where the metric has one.
        adaptive: Whether that size is relative to |w|; None where the metric has no choice.
        converged: Whether the metric met its tolerance; None where it has none.
        samples: The number of samples; None where nothing is sampled.
        fidelity: What rounding to the weights' type left of the perturbations, at the worst.
        details: What else the metric says: certificates, parts, other forms of the same number.
        options: The options of the metric.
        invariance: Which changes of the weights that preserve the function leave the value alone.
        normalized_logits: Whether logits were divided by their standard deviation.
        parameters: The number of weights.
        weight: The number of loss terms (supervised tokens).
        provenance: Where the number comes from.
        confidence_interval: (low, high) at 95%; None where nothing is sampled, where Langevin chains have not
            converged, and in files that older versions wrote.

    Example:
        The mean of (2 w_1)^2 and w_2^2 is w' diag(4, 1) w / 2. At its minimum, 0, it rises by at most 4 rho^2 / 2.

        >>> import torch
        >>> from landscape import Scope, compute_sharpness, supervised_loss
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> _ = model.weight.data.zero_()
        >>> data = [(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.zeros(2, 1))]
        >>> scope = Scope(loss_fn=supervised_loss(torch.nn.MSELoss()))
        >>> found = compute_sharpness(model, data, metric="worst_case", rho=0.1, steps=50, scope=scope)
        >>> round(found.value, 4), found.loss, found.confidence_interval
        (0.02, 0.0, None)
    """

    kind_of_result: ClassVar[str] = "sharpness"

    metric: str
    name: str
    data: str
    value: float
    stderr: float | None
    loss: float
    perturbed_loss: float | None
    rho: float | None
    adaptive: bool | None
    converged: bool | None
    samples: int | None
    fidelity: Fidelity
    details: dict
    options: dict
    invariance: str
    normalized_logits: bool
    parameters: int
    weight: float
    provenance: Provenance
    confidence_interval: tuple[float, ...] | None = None

    def rows(self) -> list[tuple[str, str]]:
        """Return what a person wants to see first, as names and values."""
        spread = "" if self.stderr is None else f" +- {self.stderr:.2g}"
        verdict = "  NOT CONVERGED" if self.converged is False else ""
        settings = ", ".join(f"{key}={value}" for key, value in self.options.items() if value is not None)
        logits = ", logits normalized" if self.normalized_logits else ""
        rows = [(self.metric, f"{self.name} on {self.data}"), ("value", f"{self.value:.6g}{spread}{verdict}")]
        if self.confidence_interval is not None:
            low, high = self.confidence_interval
            rows.append((f"{CONFIDENCE:.0%} interval", f"[{low:.6g}, {high:.6g}]"))
        rows.append(("loss", f"{self.loss:.6f} nats per token over {self.weight:.0f} tokens"))
        if self.perturbed_loss is not None:
            rows.append(("perturbed loss", f"{self.perturbed_loss:.6f}"))
        rows.append(("settings", f"{settings or 'none'}{logits}"))
        rows += [(key, f"{v:.6g}" if isinstance(v, float) else str(v)) for key, v in self.details.items()]
        rows.append(("invariance", self.invariance))
        if not self.fidelity.faithful:
            fidelity = self.fidelity
            rows.append(
                ("rounding", f"cosine {fidelity.cosine:.4f}, norm x{fidelity.norm_ratio:.4f} of what was meant")
            )
        return rows


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What the function of a metric returns; the fields are those of `Sharpness`."""

    value: float
    stderr: float | None = None
    perturbed_loss: float | None = None
    converged: bool | None = None
    samples: int | None = None
    details: dict = dataclasses.field(default_factory=dict)
    confidence_interval: tuple[float, float] | None = None

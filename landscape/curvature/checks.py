"""Checks of curvature on a user's own model: what must hold if its Hessian-vector products are right."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import nn

from landscape.checkpoints import Checkpoint
from landscape.curvature.operators.agreement import agreement
from landscape.curvature.operators.opening import curvature_of
from landscape.curvature.trace import trace_of
from landscape.data.batches import Batch
from landscape.objective.causal import CausalLoss, supervised_hidden
from landscape.objective.objective import Objective
from landscape.objective.scope import Run, Scope
from landscape.objective.subject import Subject
from landscape.results import Provenance, Result
from landscape.weights.flat import flat_length
from landscape.weights.parameters import Parameters
from landscape.weights.preservation import preserved

UNDECIDED = (
    "differences of gradients can neither confirm nor refute the products: the loss is not smooth at these steps, or "
    "the products are off by as much as is said here; eigenvalues will say that their convergence is unknown"
)


@dataclasses.dataclass(frozen=True)
class Check:
    """One thing that must hold: `error` at most `tolerance`.

    Attributes:
        name: What is checked.
        error: How far it is from holding.
        tolerance: How far it may be.
        said: The comparison in words.
        decided: Whether the comparison can tell. Differences of a loss that is not smooth cannot.
    """

    name: str
    error: float
    tolerance: float
    said: str
    decided: bool = True

    @property
    def passed(self) -> bool | None:
        """Whether the error is within its tolerance; None where the comparison cannot tell."""
        return self.error <= self.tolerance if self.decided else None


@dataclasses.dataclass(frozen=True)
class CurvatureCheck(Result):
    """Checks of the products of one model on one data set.

    Attributes:
        name: The name of the checkpoint.
        data: The name of the data set.
        checks: The checks that apply to the model.
        weight: The number of loss terms (supervised tokens).
        provenance: Where the numbers come from.
    """

    kind_of_result: ClassVar[str] = "check"

    name: str
    data: str
    checks: tuple[Check, ...]
    weight: float
    provenance: Provenance

    @property
    def passed(self) -> bool | None:
        """False where a check failed, else None where one is undecided, else True."""
        outcomes = [check.passed for check in self.checks]
        return False if False in outcomes else None if None in outcomes else True

    def rows(self) -> list[tuple[str, str]]:
        """Return the outcome of every check, for printing."""
        words = {True: "ok", False: "FAILED", None: "undecided"}
        return [("checks", f"{self.name} on {self.data}")] + [
            (check.name, f"{words[check.passed]}: {check.said}") for check in self.checks
        ]


def check_curvature(
    model: nn.Module | Checkpoint,
    data: Iterable[Batch],
    *,
    seed: int = 0,
    scope: Scope = Scope(),
    run: Run = Run(),
) -> CurvatureCheck:
    """Check Hessian-vector products of a model: symmetry, differences of gradients, the head block in closed form.

    Symmetry: u'Hv = v'Hu for random u and v.
    Step halving: Hv against central differences of gradients at ever smaller steps, in float64 where that is needed. It
    fails where the differences agree with each other and not with Hv. It is undecided where they do not agree with each
    other at any step, as those of a loss with kinks or jumps may not.
    Head products: For a language model with an untied linear head W on hidden states h_t and probabilities p_t, the
    head's block of the Hessian times V is mean_t (diag p_t - p_t p_t') V h_t h_t'.
    Head trace: That block's trace is mean_t (1 - |p_t|^2) |h_t|^2, against the estimate of `hessian_trace`.

    The last two are left out where the head is tied, not linear, or its logits are capped or scaled afterwards.

    Args:
        model: A module or a loaded checkpoint.
        data: Batches that can be read again and again.
        seed: Seed of the random vectors.
        scope: `loss_fn` is taken.
        run: `hvp` and `progress` are taken.

    Returns:
        The checks, each with its error and its tolerance.

    Example:
        >>> from landscape import Scope, supervised_loss
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> data = [(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.zeros(2, 1))]
        >>> scope = Scope(loss_fn=supervised_loss(torch.nn.MSELoss()))
        >>> [(check.name, check.passed) for check in check_curvature(model, data, scope=scope).checks]
        [('symmetry', True), ('step halving', True)]
    """
    scope.only("check_curvature", "loss_fn")
    run.only("check_curvature", "hvp")
    hvp = run.hvp
    subject = Subject(model, data, scope)
    objective, parameters = subject.objective, subject.parameters
    wide = all(t.dtype.itemsize >= 4 for t in parameters.tensors)
    checks = []
    with curvature_of(objective, parameters, hvp=hvp) as operator:
        u, v = operator.layout.random(seed, "check u"), operator.layout.random(seed, "check v")
        left, right = operator(torch.stack([v, u]))
        # u'Hv of a random u is about |u| |Hv| / sqrt(n)
        scale = float(flat_length(u) * flat_length(left)) / operator.size**0.5
        error = abs(float(u.double() @ left.double()) - float(v.double() @ right.double())) / scale
        said = f"|u'Hv - v'Hu| is {error:.1e} of the typical |u'Hv|, with {operator.hvp} products"
        if operator.reason:
            said += f", because {operator.reason}"
        checks.append(Check("symmetry", error, max(1e-4 if wide else 1e-2, 3 * operator.error), said))
        if operator.hvp == "exact" and wide:
            found = agreement(objective, parameters, v, left)
            said = found.words if found.right is not None else f"{UNDECIDED} ({found.words})"
            # a verdict, not a distance, decides: the tolerance is what the verdict took for the differences' own error
            tolerance = max(1e-3, 3 * found.error) if found.right else found.error
            checks.append(Check("step halving", found.apart, tolerance, said, found.right is not None))
    head = _untied_head(objective, parameters)
    if head is not None:
        checks += _head_checks(subject, head, hvp, seed)
    return CurvatureCheck(checks=tuple(checks), **subject.result_fields({"check": "curvature", "hvp": hvp}, seed))


def _untied_head(objective: Objective, parameters: Parameters) -> str | None:
    """Return the name of the head's weight where the closed form holds for it."""
    loss_fn, model = objective.loss_fn, objective.model
    if not isinstance(loss_fn, CausalLoss) or not loss_fn.linear_head:
        return None
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    for entry in parameters:
        if entry.tensor is head.weight and not entry.aliases:
            return entry.name
    return None


def _head_checks(subject: Subject, name: str, hvp: str, seed: int) -> list[Check]:
    """Return the checks of products and trace of the block of the head's weight `name`."""
    objective = subject.objective
    head: Any = objective.model.get_output_embeddings()  # type: ignore[operator]
    block = subject.rescoped(parameters=name)
    with curvature_of(objective, block.parameters, hvp=hvp) as operator:
        vector = operator.layout.random(seed, "check head")
        product = operator(vector[None])[0]
    probe = vector.view(head.weight.shape).double()
    expected, trace, count = torch.zeros_like(probe), 0.0, 0
    with torch.no_grad(), preserved(objective.model):
        for hidden in objective.over_batches(lambda batch: supervised_hidden(objective.model, batch)):
            p, h = torch.softmax(head(hidden).double(), dim=-1), hidden.double()
            pushed = p * (h @ probe.T)
            expected += (pushed - p * pushed.sum(-1, keepdim=True)).T @ h
            trace += float(((1 - p.square().sum(-1)) * h.square().sum(-1)).sum())
            count += len(h)
    expected, trace = expected.reshape(-1) / count, trace / count
    error = float(torch.dist(product.double(), expected) / torch.linalg.vector_norm(expected))
    half = head.weight.dtype.itemsize < 4
    checks = [
        Check("head products", error, 5e-2 if half else 1e-3, f"{error:.1e} from the closed form of {name}'s block")
    ]
    # an interval of nine times the value is reached at the first look, at 16 probes
    estimate = trace_of(block, rtol=9.0, max_probes=1000, seed=seed, run=Run(method="hutchinson", hvp=hvp))
    error = abs(estimate.value - trace) / max(estimate.stderr, 1e-3 * abs(trace))
    said = f"closed form {trace:.5g}, estimate {estimate.value:.5g} +- {estimate.stderr:.2g}"
    checks.append(Check("head trace", error, 4.0, said))
    return checks

"""The options of a fine-tuning run that belong together: how it optimizes, what it rehearses, what it saves."""

from __future__ import annotations

import math
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import Any

from landscape.errors import InputError, as_typed

# The default radii: of Foret et al. 2021, and for "asam" of Kwon et al. 2021.
RADIUS = {"sam": 0.05, "asam": 0.5, "sam-on": 0.05, "functional-sam": 0.05}
OPTIMIZERS = ("adamw", *RADIUS)


@dataclass(frozen=True)
class Optimization:
    """How a model is fine-tuned: the optimizer, its steps, and what it trains.

    The learning rate rises linearly over the first 5% of the steps and then falls linearly to 0. There is no weight
    decay, and gradients are clipped to a norm of 1.

    Attributes:
        optimizer: "adamw"; or "sam", which takes AdamW's step with the gradient at w + rho g / |g|; or "asam", which
            takes it with the gradient at w + rho T^2 g / |T g|, T = diag|w|; or "sam-on", which moves normalization
            layers alone before the second gradient; or "functional-sam", which keeps the derivative of the loss in the
            logits from w. All but the first take two gradients a step. See `SAMTrainer`.
        rho: Radius of SAM's ascent step, in l2 norm over all that moves. None stands for 0.5 with "asam" and for 0.05
            with the others. "adamw" ignores it.
        lr: Peak learning rate.
        epochs: Passes over the training data.
        steps: Optimizer steps; where given, it overrides `epochs`.
        batch_size: Examples per optimizer step. The loss of a step is the mean over its supervised tokens.
        accumulate: Equal parts that a step's batch is split into, one in memory at a time. Changes memory use and, but
            for rounding, never results.
        lora: Rank of a LoRA adapter (Hu et al. 2022) to train instead of the weights; None trains the weights.

    Raises:
        InputError: A value is of the wrong kind or out of range.

    Source:
        Foret et al. 2021 (arXiv 2010.01412) for "sam"; Kwon et al. 2021 (arXiv 2102.11600) for "asam"; Mueller et
        al. 2023 (arXiv 2306.04226) for "sam-on"; Singh et al. 2025 (arXiv 2502.02407) for "functional-sam".

    Example:
        >>> from landscape import Optimization
        >>> Optimization(optimizer="asam", lr=1e-4, steps=200).radius
        0.5
    """

    optimizer: str = "adamw"
    rho: float | None = None
    lr: float = 1e-5
    epochs: float = 1.0
    steps: int | None = None
    batch_size: int = 16
    accumulate: int = 1
    lora: int | None = None

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise InputError(f"{as_typed('optimizer', self.optimizer)} is none of {', '.join(OPTIMIZERS)}.")
        if self.rho is not None and not 0 <= self.rho < math.inf:
            raise InputError(f"{as_typed('rho', self.rho)} is not a radius; it must be at least 0 and finite.")
        _check_positive("lr", self.lr)
        _check_positive("epochs", self.epochs)
        for name in ("steps", "batch_size", "accumulate", "lora"):
            _check_count(name, getattr(self, name))
        if self.optimizer == "sam-on" and self.lora is not None:
            raise InputError(
                f"{as_typed('optimizer', 'sam-on')} moves normalization layers, and {as_typed('lora', self.lora)} "
                "trains none of them."
            )
        if self.batch_size % self.accumulate:
            raise InputError(
                f"{as_typed('batch_size', self.batch_size)} does not divide into "
                f"{as_typed('accumulate', self.accumulate)} equal parts."
            )

    @property
    def radius(self) -> float | None:
        """Radius of the ascent step, which is `rho` or its default; None for an optimizer that takes no such step."""
        if self.optimizer not in RADIUS:
            return None
        return RADIUS[self.optimizer] if self.rho is None else self.rho

    @property
    def sam(self) -> dict[str, Any] | None:
        """The arguments of `SAMTrainer`; None for an optimizer that takes no ascent step."""
        if self.radius is None:
            return None
        name = self.optimizer
        kinds = {"adaptive": name == "asam", "only_norms": name == "sam-on", "functional": name == "functional-sam"}
        return {"rho": self.radius} | kinds


@dataclass(frozen=True)
class Rehearsal:
    """Old data that is mixed into the training data, so that less of it is forgotten.

    Attributes:
        data: The old data, as `load_data` takes it; of a built-in corpus the train part is read.
        ratio: Share of old examples among all examples of the mix, between 0 and 1. Which of the old examples are taken
            is drawn with the seed of the run.

    Raises:
        InputError: `ratio` is not between 0 and 1.

    Example:
        A mix of 90 new and 10 old examples:

        >>> from landscape import Rehearsal
        >>> Rehearsal("builtin:docs", ratio=0.1).examples_beside(90)
        10
    """

    data: str | Path
    ratio: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise InputError(
                f"the rehearsal's ratio={self.ratio} is not between 0 and 1: it is the share of old examples."
            )

    def examples_beside(self, new: int) -> int:
        """Return how many old examples make up the ratio beside `new` new ones; at least 1."""
        return max(1, round(new * self.ratio / (1 - self.ratio)))


@dataclass(frozen=True)
class Guidance:
    """An instruction vector of the base that guides the training (Jiang et al. 2024).

    Attributes:
        vector: The vector, as many numbers as the model is wide.
        layer: The layer to whose attention output it is added in the base.
        checkpoint: Digest of the checkpoint that the vector is of; it must be the base of the run.
        task: Name of the in-context task, which should be the one that is trained.
        weight: Factor of the term KL(P || P_base+vector) at the last token of each prompt.

    Raises:
        InputError: `weight` is not positive, or there is no vector.

    Example:
        >>> from landscape import Guidance
        >>> Guidance((0.5, -0.5), layer=3, checkpoint="", task="capitals").weight
        1.0
    """

    vector: tuple[float, ...]
    layer: int
    checkpoint: str
    task: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        _check_positive("guide_weight", self.weight)
        if not self.vector or not all(math.isfinite(number) for number in self.vector):
            raise InputError(f"the instruction vector of task {self.task} has no finite numbers.")


@dataclass(frozen=True)
class Saving:
    """What a fine-tuning run saves on its way. It never changes the result.

    Attributes:
        save_every: Steps between training checkpoints. They are kept in `<output>.training` until the run is done: the
            same call, made again after an interruption, continues from the last of them to the same result.
        keep_trajectory: Number of checkpoints, at evenly spaced steps from step 0 on, that stay in
            `<output>/trajectory/step-000123`; None keeps none. `compute_trajectory` draws them.

    Raises:
        InputError: A value is no positive whole number.

    Example:
        >>> from landscape import Saving
        >>> Saving(keep_trajectory=4)
        Saving(save_every=200, keep_trajectory=4)
    """

    save_every: int = 200
    keep_trajectory: int | None = None

    def __post_init__(self) -> None:
        _check_count("save_every", self.save_every)
        _check_count("keep_trajectory", self.keep_trajectory)


def _check_positive(name: str, value: float) -> None:
    """Raise InputError unless the value is positive and finite."""
    if not 0 < value < math.inf:
        raise InputError(f"{as_typed(name, value)} must be positive and finite.")


def _check_count(name: str, value: int | None) -> None:
    """Raise InputError unless the value is a positive whole number, or None where that is a choice."""
    if value is None:
        return
    try:
        _check_positive(name, index(value))
    except TypeError as error:
        raise InputError(f"{as_typed(name, value)} is not a whole number.") from error

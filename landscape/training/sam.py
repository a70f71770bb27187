"""SAM, sharpness-aware minimization, as a torch optimizer around any other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from landscape.errors import InputError
from landscape.training.ascent import Ascent, ascend_groups, check_radius


class SAM(torch.optim.Optimizer):
    """Sharpness-aware minimization: a step of any torch optimizer with the gradient at w + eps instead of at w.

    One step computes g = grad L(w), moves to w + eps with

        eps = rho g / |g|                          (SAM)
        eps = rho T^2 g / |T g|,  T = diag|w|      (adaptive SAM)

    computes grad L(w + eps) there, moves back to w exactly, and lets the base optimizer take its step from w with that
    second gradient. It minimizes, to first order, the largest loss within a distance rho of w. Each step therefore
    takes two gradients, and between them SAM keeps one copy of the weights that moved. Weight decay, momentum and all
    other settings are the base optimizer's.

    There are two ways to take a step. `step(closure)` calls the closure twice, at w and at w + eps; the closure clears
    the gradients, computes the loss, calls `backward()` and returns the loss. Or, with the gradients at w in place,
    call `first_step()`, compute the gradients anew, and call `second_step()`.

    Groups make SAM-ON of it (Mueller et al. 2023, arXiv 2306.04226): `rho=0` for all weights but those of normalization
    layers. Functional SAM (Singh et al. 2025, arXiv 2502.02407) keeps dL/dlogits of w: after `first_step()`, take the
    second gradient with `(model(x) * slope).sum().backward()`. `SAMTrainer` has both as options.

    Where this departs from published code:

    - |g| is the norm over the whole model and the whole batch, whatever the parallelism (DDP, FSDP2). Code that takes
      the norm of each process's shard alone moves sqrt(processes) times as far as rho says: "rho = 2" on 16 GPUs is 8.
    - The weights come back from a copy, bit for bit. Subtracting eps again would leave rounding errors.
    - The adaptive step adds no constant eta to |w|, which would break its invariance to rescaling of the weights.
    - FSDP1 is not supported: torch shows its flat shards as ordinary tensors, so that each process would take the norm
      of its own.

    Args:
        params: Parameters or parameter groups, as any torch optimizer takes them. A group may have its own `rho` and
            `adaptive`; group k then moves by rho_k g_k / |g|, and a group with rho = 0 neither moves nor counts in |g|.
        base_optimizer: The class of the optimizer that takes the step, such as `torch.optim.AdamW`.
        rho: Radius of the ascent step, in l2 norm over all parameters of the optimizer. The default, 0.05, is that of
            Foret et al.; Kwon et al. use 0.5 for the adaptive step.
        adaptive: Whether the radius is relative to |w|, element by element.
        **kwargs: Arguments of the base optimizer, such as `lr`.

    Attributes:
        base_optimizer: The optimizer that takes the step; it shares its state and its groups with SAM.
        ascent: The last ascent step with its realized `radius` and its `fidelity`; None before the first.

    Raises:
        InputError: `rho` is negative or not finite, or steps are taken out of order.

    Source:
        Foret et al. 2021 (arXiv 2010.01412), eq. 2 and 3; Kwon et al. 2021 (arXiv 2102.11600), eq. 7.

    Example:
        The loss |w|^2 / 2 has the gradient w. At w = (3, 4), |g| = 5 and eps = 0.5 w / 5 = (0.3, 0.4). The gradient at
        w + eps is (3.3, 4.4), so that a step of plain gradient descent with lr = 0.1 ends at w - (0.33, 0.44).

        >>> import torch
        >>> from landscape import SAM
        >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> sam = SAM([w], torch.optim.SGD, rho=0.5, lr=0.1)
        >>> def closure():
        ...     sam.zero_grad()
        ...     loss = w.square().sum() / 2
        ...     loss.backward()
        ...     return loss
        >>> sam.step(closure).item()
        12.5
        >>> [round(x, 4) for x in w.tolist()]
        [2.67, 3.56]
        >>> round(sam.ascent.radius, 4)
        0.5
    """

    def __init__(
        self,
        params: Any,
        base_optimizer: type[torch.optim.Optimizer],
        rho: float = 0.05,
        adaptive: bool = False,
        **kwargs: Any,
    ):
        check_radius(rho)
        super().__init__(params, {"rho": rho, "adaptive": adaptive, **kwargs})
        self.base_optimizer = base_optimizer(self.param_groups, **kwargs)
        self._share_state()
        self.defaults.update(self.base_optimizer.defaults)
        self.ascent: Ascent | None = None

    def _share_state(self) -> None:
        """Make SAM's groups and state those of the base optimizer: schedulers may change either."""
        self.param_groups, self.state = self.base_optimizer.param_groups, self.base_optimizer.state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, as any torch optimizer does; it may have its own `rho` and `adaptive`."""
        check_radius(param_group.get("rho", 0))
        super().add_param_group(param_group)

    def first_step(self) -> Ascent:
        """Move the weights to w + eps; the gradients in place must be those at w.

        Returns:
            The step taken, with its radius and fidelity.

        Raises:
            InputError: The weights are at w + eps already.
        """
        if self.ascent is not None and self.ascent.weights:
            raise InputError("SAM has taken its first step already: call second_step, or restore to go back to w.")
        self.ascent = ascend_groups((g["params"], g["rho"], g["adaptive"]) for g in self.param_groups)
        return self.ascent

    def restore(self) -> None:
        """Move the weights back to w exactly, without a step of the base optimizer."""
        if self.ascent is not None:
            self.ascent.undo()
            self.ascent = dataclasses.replace(self.ascent, weights=[])  # The copy is freed, radius and fidelity stay.

    def second_step(self) -> None:
        """Move the weights back to w exactly, and take the base optimizer's step with the gradients in place.

        Raises:
            InputError: `first_step` was not called before.
        """
        if self.ascent is None:
            raise InputError("SAM's second_step comes after its first_step.")
        self.restore()
        self.base_optimizer.step()
        self._opt_called = True  # Schedulers look here for whether an optimizer's step came before theirs.

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step of SAM with two calls of `closure`, at w and at w + eps.

        Args:
            closure: Clears the gradients, computes the loss, calls `backward()` and returns the loss.

        Returns:
            What the closure returned at w. If it raises, the weights are back at w.

        Raises:
            InputError: There is no closure.
        """
        if closure is None:
            raise InputError("SAM takes two gradients a step: call step(closure), or first_step and second_step.")
        with torch.enable_grad():
            loss = closure()
        self.first_step()
        try:
            with torch.enable_grad():
                closure()
        except BaseException:
            self.restore()  # An interrupted step leaves the weights where they were.
            raise
        self.second_step()
        return loss

    def state_dict(self) -> dict:
        """Return the base optimizer's state; SAM itself keeps none between steps."""
        return self.base_optimizer.state_dict()

    def load_state_dict(self, state_dict: dict) -> None:
        """Load a state of SAM, or of the base optimizer alone; then `rho` and `adaptive` of this SAM's groups stay."""
        own = [{key: group[key] for key in ("rho", "adaptive")} for group in self.param_groups]
        self.base_optimizer.load_state_dict(state_dict)
        self._share_state()
        for group, ours in zip(self.param_groups, own, strict=True):
            group.update(ours | group)

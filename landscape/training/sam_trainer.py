"""Sharpness-aware minimization inside the transformers `Trainer`."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from landscape.errors import InputError
from landscape.training.ascent import Ascent, ascend, check_radius

ASCENTS = ("batch", "micro", "local")


class SAMTrainer(Trainer):
    """`transformers.Trainer` with sharpness-aware minimization: its gradient is taken at w + rho g / |g|.

    `only_norms` moves the weights of the normalization layers alone to take the second gradient, which trains all
    weights (SAM-ON); |g| is then theirs. With `functional`, the second gradient is J(w + eps)' dL/dF(w): the derivative
    of the loss in the logits F stays that at w, and only the Jacobian J of the logits is taken at w + eps. What is left
    out, a change of dL/dF, regularizes the statistics of the logits more than the function (functional SAM).

    Each micro-batch takes two forward and backward passes, one at w and one at w + eps (see `SAM` for the formulas).
    The loss, its normalization by the number of items of the step, and the logged loss (at w) are the Trainer's own.
    Clipping acts on the second gradient, and both passes of a micro-batch draw the same dropout. Beside the loss,
    `sam_radius` is logged: the realized radius of the last ascent in the logging process.

    The copy of the weights is the only extra memory; `ascent="micro"` also needs a second gradient for a moment, at the
    ascent, and `functional` the derivatives in the logits of all micro-batches of an ascent. float16's scaled gradients
    have the same direction as unscaled ones; where one overflows there is no ascent, and the scaler skips the step.

    Args:
        *args: Arguments of `transformers.Trainer`.
        rho: Radius of the ascent step, in l2 norm over all trained parameters.
        adaptive: Whether the radius is relative to |w|, element by element.
        ascent: Whose gradient g is, with gradient accumulation and several processes (DDP, FSDP2). "batch": that of the
            whole batch of the optimizer step, over all its micro-batches and processes; this is SAM as published.
            "micro": that of each micro-batch of each process, which is m-sharpness with
            m = per_device_train_batch_size. "local": that of each process's micro-batches of the step together, without
            synchronization. With "micro" and "local" the second gradients, taken at different weights, are averaged;
            they do not work with FSDP, where no process has weights of its own.
        only_norms: Whether the ascent moves normalization layers alone: modules with "Norm" in the name of their class.
        functional: Whether the derivative of the loss in the logits is kept from w.
        **kwargs: Arguments of `transformers.Trainer`.

    Raises:
        InputError: `rho` is no radius, `ascent` is unknown, there is no normalization layer to move, the loss does not
            come from the logits alone or precision is mixed (both with `functional`), or g would not be the gradient of
            the whole model. The latter is so with DataParallel (several devices in one process), DeepSpeed, FSDP1,
            models sharded at load time, context and sequence parallelism, and optimizers that step inside `backward()`.

    Source:
        Foret et al. 2021 (arXiv 2010.01412); for `adaptive`, Kwon et al. 2021 (arXiv 2102.11600); for `only_norms`,
        Mueller, Vlaar, Rolnick and Hein 2023 (arXiv 2306.04226); for `functional`, Singh, Mobahi, Agarwala and Dauphin
        2025 (arXiv 2502.02407).

    Example:
        >>> import tempfile, torch
        >>> from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, TrainingArguments
        >>> from landscape import SAMTrainer
        >>> shape = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1}
        >>> model = LlamaForCausalLM(LlamaConfig(**shape, num_hidden_layers=1))
        >>> examples = [{"input_ids": torch.arange(8), "labels": torch.arange(8)}] * 4
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     arguments = TrainingArguments(folder, max_steps=1, use_cpu=True, report_to="none", disable_tqdm=True)
        ...     trainer = SAMTrainer(model, arguments, train_dataset=examples, rho=0.05)
        ...     trainer.remove_callback(PrinterCallback)
        ...     _ = trainer.train()
        >>> round(trainer.ascent.radius, 4)  # The realized step is as long as rho says.
        0.05
    """

    def __init__(
        self,
        *args: Any,
        rho: float = 0.05,
        adaptive: bool = False,
        ascent: str = "batch",
        only_norms: bool = False,
        functional: bool = False,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        check_radius(rho)
        if ascent not in ASCENTS:
            raise InputError(f"ascent={ascent!r} is none of {', '.join(ASCENTS)}.")
        self.rho, self.adaptive, self.ascent_over = rho, adaptive, ascent
        self.only_norms, self.functional = only_norms, functional
        self._slopes: list[Tensor] = []  # dL/dF(w) of the micro-batches that wait, for `functional`.
        self._second: int | None = None  # The waiting micro-batch whose second pass runs.
        self.ascent: Ascent | None = None  # The last one, with its radius and fidelity.
        self._waiting: list[tuple[Any, _RandomState]] = []  # Micro-batches whose second pass is due.
        self._batches_per_ascent = 1
        self._refuse_what_would_be_wrong()
        assert isinstance(self.model, torch.nn.Module)
        if only_norms and not any(p.requires_grad for p in normalization_weights(self.model)):
            raise InputError("no weight of a normalization layer is trained, and only those would move.")

    def _refuse_what_would_be_wrong(self) -> None:
        """Raise InputError where g would not be the gradient that `ascent` says it is."""
        sharded, optim = self.is_fsdp_enabled, str(self.args.optim).lower()
        refused = {
            "several devices in one process; set CUDA_VISIBLE_DEVICES or use torchrun": self.args.n_gpu > 1,
            "DeepSpeed; use FSDP2": self.is_deepspeed_enabled,
            "FSDP1; set version to 2 in fsdp_config": sharded and not self.accelerator.is_fsdp2,
            "FSDP on XLA": self.is_fsdp_xla_enabled,
            f"ascent={self.ascent_over!r} with FSDP; use 'batch'": sharded and self.ascent_over != "batch",
            "a model sharded at load time": getattr(self, "is_distributed_loading_by_transformers", False),
            "context or sequence parallelism": self.get_cp_size() > 1 or self.get_sp_size() > 1,
            "functional SAM in mixed precision, which returns a copy of the logits; set bf16 and fp16 to False and "
            "load the model in bfloat16": self.functional and self.accelerator.mixed_precision != "no",
            f"{optim}, which steps inside backward()": "lomo" in optim or "layerwise" in optim,
        }
        for what, is_so in refused.items():
            if is_so:
                raise InputError(f"SAMTrainer does not take {what}.")

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list, Any]:
        """Fetch the micro-batches of the next step, and note after how many of them an ascent is due."""
        batches, items = super().get_batch_samples(*args, **kwargs)
        self._waiting, self._slopes = [], []
        self._batches_per_ascent = 1 if self.ascent_over == "micro" else len(batches)
        return batches, items

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Run forward and backward of one micro-batch at w, and after an ascent's last one all of them at w + eps."""
        if self.rho == 0:
            return super().training_step(model, inputs, num_items_in_batch)
        if not self._waiting:
            # There are gradients already if earlier micro-batches had their own ascent, or if the end of an epoch cut a
            # step in two.
            self._held = [(p, p.grad) for p in model.parameters() if p.grad is not None]
            model.zero_grad()
        self._waiting.append((inputs, _RandomState()))
        own = self.ascent_over != "batch"
        with self.accelerator.no_sync(model) if own else contextlib.nullcontext():
            loss = super().training_step(model, inputs, num_items_in_batch)
        if len(self._waiting) == self._batches_per_ascent:
            moving = normalization_weights(model) if self.only_norms else model.parameters()
            self.ascent = ascend(moving, self.rho, self.adaptive)
            try:
                model.zero_grad()
                for parameter, gradient in self._held:
                    parameter.grad = gradient
                self._second_passes(model, num_items_in_batch)
            finally:
                self.ascent.undo()
                self.ascent = dataclasses.replace(self.ascent, weights=[])
                self._waiting, self._held, self._slopes, self._second = [], [], [], None
        return loss

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the Trainer's loss; for `functional` at w + eps, the product of the logits with dL/dF(w)."""
        if not (self.functional and model.training and self.rho > 0):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        logits = _logits(outputs)
        if self._second is None:
            (slope,) = torch.autograd.grad(loss, logits, retain_graph=True, allow_unused=True)
            if slope is None:
                raise InputError("functional SAM takes a loss that is computed from the logits that the model returns.")
            self._slopes.append(slope)
        else:
            loss = (logits * self._slopes[self._second]).sum()  # Its gradient in w is J(w + eps)' dL/dF(w).
        return (loss, outputs) if return_outputs else loss

    def _second_passes(self, model: Any, num_items_in_batch: Any) -> None:
        """Add up the gradients at w + eps of all micro-batches of this ascent."""
        last = len(self._waiting) - 1
        for index, (inputs, random_state) in enumerate(self._waiting):
            self._second = index
            random_state.restore()  # The same dropout: the second gradient must be of the same function.
            # The last micro-batch synchronizes the processes' gradients or not, as the Trainer decided.
            with self.accelerator.no_sync(model) if index < last else contextlib.nullcontext():
                super().training_step(model, inputs, num_items_in_batch)

    def floating_point_ops(self, inputs: Any) -> int:
        """Count the operations of both passes."""
        return super().floating_point_ops(inputs) * (1 if self.rho == 0 else 2)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log as the Trainer does, with the realized radius beside the loss."""
        if "loss" in logs and self.ascent is not None:
            logs["sam_radius"] = self.ascent.radius
        super().log(logs, *args, **kwargs)


def _logits(outputs: Any) -> Tensor:
    """Return the logits among what a model returns, for functional SAM; an output of transformers is a dict."""
    auxiliary, logits = (
        outputs.get(name) if isinstance(outputs, dict) else getattr(outputs, name, None)
        for name in ("aux_loss", "logits")
    )
    if auxiliary is not None:
        raise InputError(
            "functional SAM leaves out a router's auxiliary loss, which does not come from the logits; set "
            "output_router_logits to False in the model's configuration."
        )
    if logits is None or not logits.requires_grad:
        raise InputError("functional SAM takes a model that returns its logits, with their graph; this one does not.")
    return logits


def normalization_weights(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Return the weights of normalization layers, which are modules with "Norm" in the name of their class.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2))
        >>> [tuple(weight.shape) for weight in normalization_weights(model)]
        [(2,), (2,)]
    """
    layers = [module for module in model.modules() if "norm" in type(module).__name__.lower()]
    return [parameter for layer in layers for parameter in layer.parameters(recurse=False)]


class _RandomState:
    """The state of the random generators that dropout draws from."""

    def __init__(self) -> None:
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
        self._mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None

    def restore(self) -> None:
        torch.set_rng_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state_all(self._cuda)
        if self._mps is not None:
            torch.mps.set_rng_state(self._mps)

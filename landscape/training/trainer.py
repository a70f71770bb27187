"""The Trainer of a fine-tuning run: its arguments, its data, adapters, progress bar, and the trajectory it keeps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import Trainer, TrainerCallback, TrainingArguments

from landscape.checkpoints import Checkpoint, save_checkpoint
from landscape.data.tokens import Example, pad_examples
from landscape.errors import InputError, as_typed
from landscape.training.guidance import GuidedSAMTrainer, GuidedTrainer
from landscape.training.options import Guidance
from landscape.training.sam_trainer import SAMTrainer

TRAJECTORY = "trajectory"  # The folder of the checkpoints along a run.


class Diverged(InputError):
    """The loss or a weight is no longer finite, so that nothing the run made is of use."""


def with_lora(start: Checkpoint, rank: int, seed: int) -> Any:
    """Freeze a checkpoint's model and add a LoRA adapter to every linear layer but the head.

    A layer W becomes W + 2 B A. The adapter's record names its base by the absolute folder, or by the hub id and
    revision that the base was loaded by.

    Args:
        start: The checkpoint to adapt.
        rank: Rows of A and columns of B.
        seed: Seed for the initial A, of shape (rank, inputs). B, of shape (outputs, rank), is 0 at first, so that the
            adapted model is the model itself.

    Returns:
        The model as peft wraps it; only the adapter requires gradients.

    Raises:
        InputError: peft is not installed, `start` is an adapter itself, or peft finds no linear layer.

    Source:
        Hu et al. 2022 (arXiv 2106.09685).
    """
    try:
        import peft
    except ImportError as error:
        raise InputError(f"{as_typed('lora')} needs peft: pip install 'landscape-lm[train]'.") from error
    if start.files.base is not None:
        raise InputError(f"{start.source} is an adapter; merge it into its base before another is trained on it.")
    local = Path(start.source).expanduser().exists()
    here = str(start.files.gguf or start.files.folder)
    repository, _, revision = (here, "", "") if local else start.source.partition("@")
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=2 * rank,  # The factor 2 above, for every rank, so that one learning rate serves several ranks.
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        base_model_name_or_path=repository,
        revision=revision or None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            adapted: Any = peft.get_peft_model(start.model, config)
        except ValueError as error:
            raise InputError(f"{start.source} does not take a LoRA adapter: {error}") from error
    adapted.peft_config["default"].base_model_name_or_path = repository  # peft writes the model's own name here.
    return adapted


def training_arguments(folder: Path, **arguments: Any) -> TrainingArguments:
    """Return the Trainer's arguments of a run on one device.

    Args:
        folder: Where the Trainer keeps its checkpoints.
        **arguments: More arguments of `TrainingArguments`: the learning rate, steps, batch size.

    Raises:
        InputError: There are several processes; a step would then see a multiple of the batch size.
    """
    settings = TrainingArguments(
        output_dir=str(folder),
        lr_scheduler_type="linear",
        warmup_steps=0.05,  # Below 1 it is a fraction of all steps.
        weight_decay=0.0,
        max_grad_norm=1.0,
        save_strategy="steps",
        save_total_limit=1,
        logging_steps=1,  # Every step, so that a continued run's record has them all and divergence shows at once.
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        **arguments,
    )
    if settings.world_size > 1:
        raise InputError("fine-tuning runs in one process; start it without torchrun or accelerate launch.")
    settings._n_gpu = min(settings.n_gpu, 1)  # Otherwise the Trainer puts a batch on each GPU that it sees.
    return settings


def make_trainer(
    model: Any,
    examples: Sequence[Example],
    arguments: TrainingArguments,
    *,
    sam: dict[str, Any] | None,
    callbacks: list[TrainerCallback],
    guided: tuple[Guidance, Any] | None = None,
) -> Trainer:
    """Return a Trainer of AdamW, or of SAM around AdamW.

    Args:
        model: The model to train.
        examples: The training examples, in the order from which the Trainer draws batches.
        arguments: What `training_arguments` returned.
        sam: The arguments of `SAMTrainer`; None trains with AdamW alone.
        callbacks: Callbacks of the Trainer, such as the progress bar.
        guided: The guidance and the frozen base that it takes; None trains without.
    """
    shared: dict[str, Any] = {
        "model": model,
        "args": arguments,
        "train_dataset": _Examples(examples),
        "data_collator": pad_examples,
    }
    if guided is not None:
        guidance, base = guided
        kind: Any = GuidedTrainer if sam is None else GuidedSAMTrainer
        trainer: Trainer = kind(**shared, callbacks=callbacks, **(sam or {}), guidance=guidance, base=base)
    else:
        plain: Any = Trainer if sam is None else SAMTrainer
        trainer = plain(**shared, callbacks=callbacks, **(sam or {}))
    from transformers import PrinterCallback

    trainer.remove_callback(
        PrinterCallback
    )  # It prints a dictionary for each log; the progress bar shows the same in place.
    return trainer


class _Examples(torch.utils.data.Dataset):
    """A sequence of examples as a torch data set."""

    def __init__(self, examples: Sequence[Example]):
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        return self._examples[index]


class Progress(TrainerCallback):
    """A progress bar with the time left and the current loss; it ends a run whose loss is not finite."""

    def __init__(self, title: str, shown: bool):
        self._title, self._shown = title, shown
        self._bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Open the bar at the step from which the run starts or continues."""
        self._bar = tqdm(
            total=state.max_steps, initial=state.global_step, desc=self._title, unit="step", disable=not self._shown
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Advance the bar by a step."""
        self._bar.update(1)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict | None = None, **_: Any) -> None:
        """Show the loss; raise Diverged where it is not finite."""
        if logs and "loss" in logs:
            if not math.isfinite(logs["loss"]):
                self._bar.close()
                raise Diverged(f"the loss of step {state.global_step} is {logs['loss']}")
            self._bar.set_postfix(loss=f"{float(logs['loss']):.3f}")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the bar."""
        self._bar.close()


class KeepTrajectory(TrainerCallback):
    """Save checkpoints at `count` evenly spaced steps from step 0 on; the end of the run is not among them.

    Args:
        count: Number of checkpoints; a run of fewer steps is refused with InputError.
        folder: Folder for the checkpoints, each in a folder such as `step-000123`.
        tokenizer: The tokenizer to save with each.
        record: What `landscape.json` says of each, beside its step.
    """

    def __init__(self, count: int, folder: Path, tokenizer: Any, record: dict):
        self._count, self._folder, self._tokenizer, self._record = count, folder, tokenizer, record

    def on_train_begin(self, args: Any, state: Any, control: Any, **inputs: Any) -> None:
        """Save the model of step 0, if it is not there yet."""
        if state.max_steps < self._count:
            raise InputError(
                f"{as_typed('keep_trajectory', self._count)} checkpoints of a run of {state.max_steps} steps."
            )
        self.on_step_end(args, state, control, **inputs)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Save the model if this step is one of those to keep."""
        step = state.global_step
        folder = self._folder / f"step-{step:06d}"
        if step in self.steps(state.max_steps) and not folder.exists():  # A continued run has some already.
            save_checkpoint(model, self._tokenizer, folder, self._record | {"step": step})

    def steps(self, total: int) -> list[int]:
        """Return the steps to keep of a run of `total` steps."""
        return [k * total // self._count for k in range(self._count)]

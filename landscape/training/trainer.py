"""The Trainer of a fine-tuning run: its arguments, its data, adapters, the progress bar and the path it keeps."""

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
from landscape.errors import InputError
from landscape.training.sam_trainer import SAMTrainer

TRAJECTORY = "trajectory"  # folder of the checkpoints along a run


class Diverged(InputError):
    """The loss or a weight is no longer finite: nothing that the run made is of use."""


def with_lora(start: Checkpoint, rank: int, seed: int) -> Any:
    """`start`'s model, frozen, with a LoRA adapter (Hu et al. 2022, 2106.09685) on every linear layer but the head.

    W + 2 B A with A of shape (rank, inputs) drawn with `seed` and B = 0. The adapter knows its base by its absolute
    folder, or by the hub id and revision it was named by. Raises InputError where peft is missing, where `start` is
    an adapter itself and where peft finds no linear layer.
    """
    try:
        import peft
    except ImportError as error:
        raise InputError("lora needs peft: pip install 'landscape-lm[train]'.") from error
    if start.files.base is not None:
        raise InputError(f"{start.source} is an adapter; merge it into its base before another is trained on it.")
    local = Path(start.source).expanduser().is_dir()
    repository, _, revision = (str(start.files.folder), "", "") if local else start.source.partition("@")
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=2 * rank,  # the factor 2 above, whatever the rank: one learning rate serves several
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
    adapted.peft_config["default"].base_model_name_or_path = repository  # peft writes what the model is called here
    return adapted


def training_arguments(folder: Path, **arguments: Any) -> TrainingArguments:
    """Arguments of a run on one device, so that a step sees the batch size asked for and no multiple of it."""
    settings = TrainingArguments(
        output_dir=str(folder),
        lr_scheduler_type="linear",
        warmup_steps=0.05,  # below 1: a fraction of all steps
        weight_decay=0.0,
        max_grad_norm=1.0,
        save_strategy="steps",
        save_total_limit=1,
        logging_steps=1,  # so that the record of a continued run has every step, and divergence shows at once
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        **arguments,
    )
    if settings.world_size > 1:
        raise InputError("fine-tuning runs in one process; start it without torchrun or accelerate launch.")
    settings._n_gpu = min(settings.n_gpu, 1)  # else the Trainer puts a batch on each GPU it sees
    return settings


def make_trainer(
    model: Any,
    examples: Sequence[Example],
    arguments: TrainingArguments,
    *,
    rho: float | None,
    adaptive: bool,
    callbacks: list[TrainerCallback],
) -> Trainer:
    """A Trainer of AdamW, with SAM around it where `rho` is a number."""
    shared = {
        "model": model,
        "args": arguments,
        "train_dataset": _Examples(examples),
        "data_collator": pad_examples,
    }
    if rho is not None:
        trainer: Trainer = SAMTrainer(**shared, callbacks=callbacks, rho=rho, adaptive=adaptive)
    else:
        trainer = Trainer(**shared, callbacks=callbacks)
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)  # it prints a dict per log; the progress bar says it in place
    return trainer


class _Examples(torch.utils.data.Dataset):
    def __init__(self, examples: Sequence[Example]):
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        return self._examples[index]


class Progress(TrainerCallback):
    """One bar with time left and the current loss."""

    def __init__(self, title: str, shown: bool):
        self._title, self._shown = title, shown
        self._bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._bar = tqdm(
            total=state.max_steps, initial=state.global_step, desc=self._title, unit="step", disable=not self._shown
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._bar.update(1)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            if not math.isfinite(logs["loss"]):
                self._bar.close()
                raise Diverged(f"the loss of step {state.global_step} is {logs['loss']}")
            self._bar.set_postfix(loss=f"{float(logs['loss']):.3f}")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._bar.close()


class KeepTrajectory(TrainerCallback):
    """Checkpoints at `count` evenly spaced steps from 0 on, below `folder`; the end of the run is not among them."""

    def __init__(self, count: int, folder: Path, tokenizer: Any, record: dict):
        self._count, self._folder, self._tokenizer, self._record = count, folder, tokenizer, record

    def on_train_begin(self, args: Any, state: Any, control: Any, **inputs: Any) -> None:
        if state.max_steps < self._count:
            raise InputError(f"keep_trajectory={self._count} checkpoints of a run of {state.max_steps} steps.")
        self.on_step_end(args, state, control, **inputs)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        step = state.global_step
        folder = self._folder / f"step-{step:06d}"
        if step in self.steps(state.max_steps) and not folder.exists():  # a continued run has some already
            save_checkpoint(model, self._tokenizer, folder, self._record | {"step": step})

    def steps(self, total: int) -> list[int]:
        return [k * total // self._count for k in range(self._count)]

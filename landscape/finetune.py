"""Fine-tuning a checkpoint with AdamW or SAM into an ordinary Hugging Face folder that says how it was made."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from landscape.checkpoints import CheckpointFiles, inspect_checkpoint, load_files, save_checkpoint
from landscape.data import Example, TokenData, check_vocabulary, load_data, pad_examples
from landscape.errors import InputError
from landscape.objective import Objective, describe_data
from landscape.parameters import preserved
from landscape.results import installed_versions, read_json, results_folder
from landscape.sam import SAMTrainer

OPTIMIZERS = ("adamw", "sam")


def finetune(
    base: str | Path,
    data: str,
    output: str | Path,
    *,
    optimizer: str = "adamw",
    rho: float = 0.05,
    lr: float = 1e-5,
    epochs: float = 1.0,
    steps: int | None = None,
    batch_size: int = 16,
    max_length: int = 512,
    limit: int | None = None,
    seed: int = 0,
    save_every: int = 200,
    device: str = "auto",
    trust_remote_code: bool = False,
    progress: bool = True,
) -> Path:
    """Fine-tune all weights of `base` on `data` and write a Hugging Face folder with `landscape.json` to `output`.

    optimizer   "adamw", or "sam": AdamW on the gradient at w + rho g / |g| (Foret et al. 2021), two passes a step
    data        as `load_data` takes it; of a built-in corpus the train part, unless it says `@heldout`
    lr          peak learning rate: 5% warm-up, then linear decay to 0; no weight decay; gradients clipped at norm 1
    steps       optimizer steps; overrides `epochs`
    batch_size  examples a step; the loss is the mean over the supervised tokens of a step
    save_every  steps between training checkpoints, kept in `<output>.training` until the run is done: started again
                with the same arguments, an interrupted run continues from the last

    Returns `output`; where it already holds the result of the same arguments, at once. Raises InputError for wrong
    arguments, or where `output` holds anything else.
    """
    if optimizer not in OPTIMIZERS:
        raise InputError(f"optimizer={optimizer!r} is none of {', '.join(OPTIMIZERS)}.")
    positive = {"lr": lr, "epochs": epochs, "batch_size": batch_size, "save_every": save_every}
    for name, value in (positive if steps is None else positive | {"steps": steps}).items():
        if not value > 0:
            raise InputError(f"{name}={value} must be positive.")
    if not rho >= 0:
        raise InputError(f"rho={rho} is not a radius; it must be at least 0.")
    _require_accelerate()
    files = inspect_checkpoint(base, trust_remote_code=trust_remote_code)
    start = load_files(files, device=device, trust_remote_code=trust_remote_code)
    length = min(max_length, files.max_positions or max_length)
    train, held_out = _load(data, start.tokenizer, length, limit, seed, files)
    settings = {
        "base": start.describe(),
        "data": describe_data(train),
        "evaluated_on": describe_data(held_out),
        "optimizer": optimizer,
        "rho": rho if optimizer == "sam" else None,
        "lr": lr,
        "epochs": epochs if steps is None else None,
        "steps": steps,
        "batch_size": batch_size,
        "max_length": length,
        "seed": seed,
    }
    output = Path(output)
    if output.exists():
        _require_same_run(output, settings)
        return output
    with results_folder(output.with_name(output.name + ".training"), settings) as training:
        started = time.perf_counter()
        model: Any = start.model
        before = _mean_loss(model, held_out)
        trainer = _trainer(
            model,
            train,
            training,
            optimizer,
            rho,
            title=f"{output.name} ({optimizer})",
            progress=progress,
            learning_rate=lr,
            num_train_epochs=epochs,
            max_steps=steps or -1,
            per_device_train_batch_size=batch_size,
            save_steps=save_every,
            seed=seed,
            use_cpu=start.device == "cpu",
        )
        result = trainer.train(resume_from_checkpoint=_last_checkpoint(training))
        record = settings | {
            "format": "landscape/checkpoint",
            "steps_taken": trainer.state.global_step,
            "losses": {
                "training": float(result.training_loss),
                "evaluated_before": before,
                "evaluated_after": _mean_loss(model, held_out),
            },
            "versions": installed_versions(),
            "seconds": time.perf_counter() - started,  # of this process; a continued run has spent more
        }
        save_checkpoint(model, start.tokenizer, output, record)
    shutil.rmtree(training, ignore_errors=True)
    return output


def _require_accelerate() -> None:
    try:
        import accelerate  # noqa: F401
    except ImportError as error:
        raise InputError("fine-tuning needs accelerate: pip install 'landscape-lm[train]'.") from error


def _load(
    source: str, tokenizer: Any, max_length: int, limit: int | None, seed: int, files: CheckpointFiles
) -> tuple[TokenData, TokenData]:
    """Training data, and what to evaluate on: the held-out part of a built-in corpus, else the training data."""
    train = load_data(source, tokenizer, max_length=max_length, limit=limit, seed=seed, part="train")
    if files.vocabulary_size is not None:
        check_vocabulary(train, files.vocabulary_size, files.source)
    if not source.startswith("builtin:"):
        return train, train
    corpus = source.partition("@")[0]
    return train, load_data(corpus, tokenizer, max_length=max_length, limit=64, seed=0, part="heldout")


def _last_checkpoint(folder: Path) -> str | None:
    """The last training checkpoint that was written whole; what a kill tore is removed."""
    while (last := get_last_checkpoint(str(folder))) is not None:
        if (Path(last) / "trainer_state.json").exists():  # the Trainer writes it last
            return last
        shutil.rmtree(last)
    return None


def _mean_loss(model: Any, data: TokenData) -> float:
    with preserved(model):
        return Objective(model, data).loss().mean


def _require_same_run(output: Path, settings: dict) -> None:
    record = output / "landscape.json"
    made = read_json(record) if record.exists() else {}
    differing = [key for key, value in settings.items() if made.get(key) != value]
    if differing:
        raise InputError(f"{output} exists and was not made by this run ({', '.join(differing)} differ).")


def _trainer(
    model: Any,
    data: TokenData,
    folder: Path,
    optimizer: str,
    rho: float,
    *,
    title: str,
    progress: bool,
    **arguments: Any,
) -> Trainer:
    settings = TrainingArguments(
        output_dir=str(folder),
        lr_scheduler_type="linear",
        warmup_steps=0.05,  # below 1: a fraction of all steps
        weight_decay=0.0,
        max_grad_norm=1.0,
        save_strategy="steps",
        save_total_limit=1,
        logging_steps=10,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        **arguments,
    )
    shared = {
        "model": model,
        "args": settings,
        "train_dataset": _Examples(data.examples),
        "data_collator": pad_examples,
    }
    callbacks: list[TrainerCallback] = [_Progress(title, progress)]
    if optimizer == "sam":
        trainer: Trainer = SAMTrainer(**shared, callbacks=callbacks, rho=rho)
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


class _Progress(TrainerCallback):
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
            self._bar.set_postfix(loss=f"{float(logs['loss']):.3f}")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._bar.close()

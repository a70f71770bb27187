"""Fine-tuning a checkpoint with AdamW or SAM into an ordinary Hugging Face folder that says how it was made."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Sequence
from operator import index
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import get_last_checkpoint

from landscape.checkpoints import (
    CheckpointFiles,
    inspect_checkpoint,
    load_files,
    load_tokenizer,
    resolve_device,
    save_checkpoint,
)
from landscape.data import Example, TokenData, check_vocabulary, load_data, pad_examples
from landscape.errors import InputError
from landscape.objective import Objective, describe_data
from landscape.parameters import preserved
from landscape.results import installed_versions, read_json, results_folder, to_plain
from landscape.sam import SAMTrainer

OPTIMIZERS = ("adamw", "sam")
_LOSSES = ("training", "evaluated_before", "evaluated_after")
_HELD_OUT = 64  # examples of a built-in corpus's held-out part that a run is evaluated on


class _Diverged(InputError):
    """The loss or a weight is no longer finite: nothing that the run made is of use."""


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
                with the same arguments, an interrupted run continues from the last and ends with the same result
    device      one device: "auto", "cpu", "mps", or "cuda" for the first visible GPU

    `landscape.json` says under "evaluated_on" what was evaluated, and how `load_data` reads the same again: source
    (files and folders with their absolute path), max_length, limit and seed.

    Returns `output`; where it already holds the whole result of the same arguments, at once. Raises InputError for
    wrong arguments, where `output` holds anything else, and where the loss or the weights stop being finite: then
    nothing is written.
    """
    if optimizer not in OPTIMIZERS:
        raise InputError(f"optimizer={optimizer!r} is none of {', '.join(OPTIMIZERS)}.")
    _check_numbers({"lr": lr, "epochs": epochs}, {"batch_size": batch_size, "save_every": save_every, "steps": steps})
    if not 0 <= rho < math.inf:
        raise InputError(f"rho={rho} is not a radius; it must be at least 0 and finite.")
    if not 0 <= seed < 2**32:
        raise InputError(f"seed={seed} is not in [0, 2**32).")
    place = resolve_device(device)
    if place.type not in ("cpu", "cuda", "mps") or place.index not in (None, 0):
        raise InputError(f"device={device!r}: fine-tuning runs on the first visible GPU; set CUDA_VISIBLE_DEVICES.")
    _require_accelerate()
    files = inspect_checkpoint(base, trust_remote_code=trust_remote_code)
    start = load_files(files, device=device, trust_remote_code=trust_remote_code)
    length = min(max_length, files.max_positions or max_length)
    data = os.path.abspath(data) if os.path.exists(data) else str(data)  # so that it is found from anywhere
    train, held_out = _load(data, start.tokenizer, length, limit, seed, files)
    read_with = {"limit": limit, "seed": seed} if held_out is train else {"limit": _HELD_OUT, "seed": 0}
    settings = {
        "base": start.describe(),
        "data": describe_data(train),
        "evaluated_on": describe_data(held_out) | {"max_length": length} | read_with,
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
    if os.path.lexists(output):
        _require_same_run(output, settings, trust_remote_code)
        return output
    with results_folder(output.with_name(output.name + ".training"), settings) as training:
        started = time.perf_counter()
        model: Any = start.model
        before = _mean_loss(model, held_out)
        if not math.isfinite(before):
            raise InputError(f"the loss of {base} on {held_out.source} is {before}; there is nothing to start from.")
        trainer = _trainer(
            model,
            train,
            _training_arguments(
                training,
                learning_rate=lr,
                num_train_epochs=epochs,
                max_steps=steps or -1,
                per_device_train_batch_size=batch_size,
                save_steps=save_every,
                seed=seed,
                use_cpu=place.type == "cpu",
            ),
            rho=rho if optimizer == "sam" else None,
            title=f"{output.name} ({optimizer})",
            progress=progress,
        )
        try:
            last = _last_checkpoint(training)
            state = last and TrainerState.load_from_json(str(Path(last) / "trainer_state.json"))
            if state and state.global_step >= state.max_steps:  # only saving was left; the Trainer would go on a step
                reached = inspect_checkpoint(str(last), trust_remote_code=trust_remote_code)
                model = load_files(reached, device=device, trust_remote_code=trust_remote_code).model
            else:
                trainer.train(resume_from_checkpoint=last)
                state = trainer.state
            after = _mean_loss(model, held_out)
            _check_finite(model, after)
        except _Diverged as error:
            _empty(training)
            cure = "lower lr or rho" if optimizer == "sam" else "lower lr"
            raise InputError(f"the run diverged: {error}; {cure}. Nothing was written.") from error
        losses = [entry["loss"] for entry in state.log_history if "loss" in entry]  # one for every step
        record = settings | {
            "format": "landscape/checkpoint",
            "steps_taken": state.global_step,
            "losses": dict(zip(_LOSSES, (sum(losses) / len(losses), before, after), strict=True)),
            "versions": installed_versions(),
            "seconds": time.perf_counter() - started,  # of this process; a continued run has spent more
        }
        save_checkpoint(model, start.tokenizer, output, record)
    shutil.rmtree(training, ignore_errors=True)
    return output


def _check_numbers(positive: dict[str, float], counts: dict[str, int | None]) -> None:
    for name, count in counts.items():
        try:
            positive = positive | ({} if count is None else {name: index(count)})
        except TypeError as error:
            raise InputError(f"{name}={count!r} is not a whole number.") from error
    for name, value in positive.items():
        if not 0 < value < math.inf:
            raise InputError(f"{name}={value} must be positive and finite.")


def _check_finite(model: torch.nn.Module, loss: float) -> None:
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise _Diverged(f"{name} is not finite after the last step")
    if not math.isfinite(loss):
        raise _Diverged(f"the loss after the last step is {loss}")


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


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
    return train, load_data(corpus, tokenizer, max_length=max_length, limit=_HELD_OUT, seed=0, part="heldout")


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


def _require_same_run(output: Path, settings: dict, trust_remote_code: bool) -> None:
    """Raise InputError unless `output` holds the whole result of these settings."""
    record = output / "landscape.json"
    if not record.exists():
        raise InputError(f"{output} exists and was not made by this run (it has no landscape.json).")
    made = read_json(record)
    differing = [key for key, value in to_plain(settings).items() if made.get(key) != value]
    if differing:
        raise InputError(f"{output} exists and was not made by this run ({', '.join(differing)} differ).")
    losses = made.get("losses")
    numbers = [losses.get(key) if isinstance(losses, dict) else None for key in _LOSSES] + [made.get("steps_taken")]
    if not all(isinstance(number, (int, float)) for number in numbers):
        raise InputError(f"{record} is damaged (losses or steps_taken); delete {output} to run again.")
    load_tokenizer(
        inspect_checkpoint(output, trust_remote_code=trust_remote_code)
    )  # reads every file and says what is missing


def _training_arguments(folder: Path, **arguments: Any) -> TrainingArguments:
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


def _trainer(
    model: Any, data: TokenData, arguments: TrainingArguments, *, rho: float | None, title: str, progress: bool
) -> Trainer:
    shared = {
        "model": model,
        "args": arguments,
        "train_dataset": _Examples(data.examples),
        "data_collator": pad_examples,
    }
    callbacks: list[TrainerCallback] = [_Progress(title, progress)]
    if rho is not None:
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
            if not math.isfinite(logs["loss"]):
                self._bar.close()
                raise _Diverged(f"the loss of step {state.global_step} is {logs['loss']}")
            self._bar.set_postfix(loss=f"{float(logs['loss']):.3f}")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._bar.close()

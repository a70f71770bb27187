"""Fine-tuning a checkpoint with AdamW, SAM or adaptive SAM into a Hugging Face folder that says how it was made."""

from __future__ import annotations

import math
import os
import shutil
import time
from operator import index
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
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
from landscape.data.tokens import TokenData, check_vocabulary, load_data
from landscape.errors import InputError
from landscape.objective.identity import describe_data
from landscape.objective.objective import Objective
from landscape.results import installed_versions, read_json, results_folder, to_plain
from landscape.training.trainer import (
    TRAJECTORY,
    Diverged,
    KeepTrajectory,
    Progress,
    make_trainer,
    training_arguments,
    with_lora,
)
from landscape.weights.preservation import preserved

OPTIMIZERS = ("adamw", "sam", "asam")
RADIUS = {"sam": 0.05, "asam": 0.5}  # Foret et al. 2021; Kwon et al. 2021, whose radius is relative to the weights
_LOSSES = ("training", "evaluated_before", "evaluated_after")
_HELD_OUT = 64  # examples of a built-in corpus's held-out part that a run is evaluated on


def finetune(
    base: str | Path,
    data: str,
    output: str | Path,
    *,
    optimizer: str = "adamw",
    rho: float | None = None,
    lr: float = 1e-5,
    epochs: float = 1.0,
    steps: int | None = None,
    batch_size: int = 16,
    accumulate: int = 1,
    lora: int | None = None,
    rehearse: str | None = None,
    rehearse_ratio: float | None = None,
    max_length: int = 512,
    limit: int | None = None,
    seed: int = 0,
    save_every: int = 200,
    keep_trajectory: int | None = None,
    device: str = "auto",
    trust_remote_code: bool = False,
    progress: bool = True,
) -> Path:
    """Fine-tune `base` on `data` and write a Hugging Face folder with `landscape.json` to `output`.

    optimizer        "adamw"; "sam": AdamW on the gradient at w + rho g / |g| (Foret et al. 2021); "asam": at
                     w + rho T^2 g / |T g|, T = diag|w| (Kwon et al. 2021). The last two take two passes a step
    rho              radius of the ascent step, an l2 norm over all that is trained; default 0.05 (sam), 0.5 (asam)
    data             as `load_data` takes it; of a built-in corpus the train part, unless it says `@heldout`
    lr               peak learning rate: 5% warm-up, then linear decay to 0; no weight decay; gradients clipped at 1
    steps            optimizer steps; overrides `epochs`
    batch_size       examples a step; the loss is the mean over the supervised tokens of a step
    accumulate       parts that a step's batch is split into, one in memory at a time; the same result to rounding
    lora             rank of a LoRA adapter to train instead of the weights, see `with_lora`; `output` is an adapter
    rehearse         old data to mix in, as `data`: rehearse_ratio (default 0.1) is its share of all examples, drawn
                     with `seed`
    save_every       steps between training checkpoints, kept in `<output>.training` until the run is done: started
                     again with the same arguments, an interrupted run continues from the last to the same result
    keep_trajectory  so many checkpoints, from step 0 evenly spaced, stay in `<output>/trajectory/step-000123`
    device           one device: "auto", "cpu", "mps", or "cuda" for the first visible GPU

    `landscape.json` says under "evaluated_on" what was evaluated, and how `load_data` reads the same again: source
    (files and folders with their absolute path), max_length, limit and seed.

    Returns `output`; where it already holds the whole result of the same arguments, at once. Raises InputError for
    wrong arguments, where `output` holds anything else, and where the loss or the weights stop being finite: then
    nothing is written.
    """
    if optimizer not in OPTIMIZERS:
        raise InputError(f"optimizer={optimizer!r} is none of {', '.join(OPTIMIZERS)}.")
    counts = {"batch_size": batch_size, "accumulate": accumulate, "save_every": save_every, "steps": steps}
    counts |= {"lora": lora, "keep_trajectory": keep_trajectory}
    _check_numbers({"lr": lr, "epochs": epochs}, counts)
    if batch_size % accumulate:
        raise InputError(f"batch_size={batch_size} does not divide into accumulate={accumulate} equal parts.")
    if rehearse is None and rehearse_ratio is not None:
        raise InputError("rehearse_ratio is a share of old data, but rehearse names none.")
    ratio = 0.1 if rehearse_ratio is None else rehearse_ratio
    if not 0 < ratio < 1:
        raise InputError(f"rehearse_ratio={ratio} is not between 0 and 1: it is the share of old examples.")
    rho = RADIUS.get(optimizer, 0.0) if rho is None else rho
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
    old = None
    if rehearse is not None:
        rehearse = os.path.abspath(rehearse) if os.path.exists(rehearse) else str(rehearse)
        old = _load_rehearsal(rehearse, start.tokenizer, length, len(train.examples), ratio, seed, files)
    read_with = {"limit": limit, "seed": seed} if held_out is train else {"limit": _HELD_OUT, "seed": 0}
    settings = {
        "base": start.describe(),
        "data": describe_data(train),
        "evaluated_on": describe_data(held_out) | {"max_length": length} | read_with,
        "optimizer": optimizer,
        "rho": rho if optimizer in RADIUS else None,
        "lr": lr,
        "epochs": epochs if steps is None else None,
        "steps": steps,
        "batch_size": batch_size,
        "accumulate": accumulate,
        "lora": lora,
        "rehearse": describe_data(old) | {"ratio": ratio} if old else None,
        "keep_trajectory": keep_trajectory,
        "max_length": length,
        "seed": seed,
    }
    output = Path(output)
    workplace = output.with_name(output.name + ".training")
    if os.path.lexists(output):
        _require_same_run(output, settings, trust_remote_code)
        if (workplace / "settings.json").exists() and read_json(workplace / "settings.json") == to_plain(settings):
            _finish(workplace, output)  # the run was killed after it had saved its result
        return output
    with results_folder(workplace, settings) as training:
        started = time.perf_counter()
        model: Any = start.model if lora is None else with_lora(start, lora, seed)
        before = _mean_loss(model, held_out)
        if not math.isfinite(before):
            raise InputError(f"the loss of {base} on {held_out.source} is {before}; there is nothing to start from.")
        callbacks: list[TrainerCallback] = [Progress(f"{output.name} ({optimizer})", progress)]
        if keep_trajectory is not None:
            about = settings | {"format": "landscape/checkpoint"}
            callbacks.append(KeepTrajectory(keep_trajectory, training / TRAJECTORY, start.tokenizer, about))
        trainer = make_trainer(
            model,
            [*train.examples, *(old.examples if old else ())],
            training_arguments(
                training,
                learning_rate=lr,
                num_train_epochs=epochs,
                max_steps=steps or -1,
                per_device_train_batch_size=batch_size // accumulate,
                gradient_accumulation_steps=accumulate,
                save_steps=save_every,
                seed=seed,
                use_cpu=place.type == "cpu",
            ),
            rho=rho if optimizer in RADIUS else None,
            adaptive=optimizer == "asam",
            callbacks=callbacks,
        )
        try:
            last = _last_checkpoint(training)
            state = last and TrainerState.load_from_json(str(Path(last) / "trainer_state.json"))
            if state and state.global_step >= state.max_steps:  # only saving was left; the Trainer would go on a step
                reached = inspect_checkpoint(str(last), trust_remote_code=trust_remote_code)
                loaded = load_files(reached, device=device, adapter="keep", trust_remote_code=trust_remote_code)
                model = loaded.model
            else:
                trainer.train(resume_from_checkpoint=last)
                state = trainer.state
            after = _mean_loss(model, held_out)
            _check_finite(model, after)
        except Diverged as error:
            _empty(training)
            cure = "lower lr or rho" if optimizer in RADIUS else "lower lr"
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
    _finish(workplace, output)
    return output


def _finish(workplace: Path, output: Path) -> None:
    """Hand over what the run kept along its way, and clear its workplace."""
    kept = workplace / TRAJECTORY
    if kept.exists() and not (output / TRAJECTORY).exists():
        os.replace(kept, output / TRAJECTORY)
    shutil.rmtree(workplace, ignore_errors=True)


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
            raise Diverged(f"{name} is not finite after the last step")
    if not math.isfinite(loss):
        raise Diverged(f"the loss after the last step is {loss}")


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


def _load_rehearsal(
    source: str, tokenizer: Any, max_length: int, new: int, ratio: float, seed: int, files: CheckpointFiles
) -> TokenData:
    """Old examples that make up `ratio` of the mix with `new` new ones."""
    count = max(1, round(new * ratio / (1 - ratio)))
    old = load_data(source, tokenizer, max_length=max_length, limit=count, seed=seed, part="train")
    if files.vocabulary_size is not None:
        check_vocabulary(old, files.vocabulary_size, files.source)
    if len(old.examples) < count:
        raise InputError(
            f"rehearse_ratio={ratio} beside {new} new examples takes {count} old ones, but {old.source} gives "
            f"{len(old.examples)}; lower it."
        )
    return old


def _last_checkpoint(folder: Path) -> str | None:
    """The last training checkpoint that was written whole; what a kill tore is removed."""
    while (last := get_last_checkpoint(str(folder))) is not None:
        try:
            TrainerState.load_from_json(str(Path(last) / "trainer_state.json"))  # the Trainer writes it last
        except (OSError, ValueError, TypeError):
            shutil.rmtree(last)
        else:
            return last
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

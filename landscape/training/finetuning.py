"""Fine-tuning a checkpoint with AdamW, SAM or adaptive SAM into a Hugging Face folder that says how it was made."""

from __future__ import annotations

import copy
import math
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import get_last_checkpoint

from landscape.checkpoints import (
    Checkpoint,
    LoadOptions,
    inspect_checkpoint,
    load_files,
    load_tokenizer,
    resolve_device,
    save_checkpoint,
)
from landscape.data.tokens import IGNORED, DataOptions, TokenData
from landscape.errors import InputError, as_typed
from landscape.linalg.precision import all_finite
from landscape.objective.identity import describe_data
from landscape.objective.objective import Objective
from landscape.results import digest_of, installed_versions, read_json, results_folder, to_plain
from landscape.training.examples import load_parts, load_rehearsal
from landscape.training.options import Guidance, Optimization, Rehearsal, Saving
from landscape.training.trainer import (
    TRAJECTORY,
    Diverged,
    KeepTrajectory,
    Progress,
    make_trainer,
    training_arguments,
    with_lora,
)
from landscape.weights.attention import attention_of
from landscape.weights.preservation import preserved

_LOSSES = ("training", "evaluated_before", "evaluated_after")


def finetune(
    base: str | Path,
    data: str | Path,
    output: str | Path,
    *,
    optimization: Optimization = Optimization(),
    rehearsal: Rehearsal | None = None,
    guidance: Guidance | None = None,
    seed: int = 0,
    data_options: DataOptions = DataOptions(),
    load_options: LoadOptions = LoadOptions(),
    saving: Saving = Saving(),
    progress: bool = True,
) -> Path:
    """Fine-tune a checkpoint and write a Hugging Face folder with the record `landscape.json`.

    The record says how the checkpoint was made: its base, data, optimization, seed, and the losses before and after.
    Under "evaluated_on" it says what the losses before and after are of, and how `load_data` reads the same again: the
    source (files and folders with their absolute path), max_length, limit and seed. They are 64 examples, 16 in a run
    that takes fewer than 860: of the held-out part of a built-in corpus, and else of the source, where they are held
    out of the training if they are at most a tenth of it ("held_out" says whether they are).

    An interrupted run continues: the same call, made again, goes on from the last training checkpoint to the same
    result. Where `output` holds the whole result of the same arguments already, it is returned at once.

    Args:
        base: Checkpoint to start from: a folder or a hub id, as `load_checkpoint` takes it.
        data: Training data, as `load_data` takes it. Of a built-in corpus the train part is read, unless `data` names
            the other one (`builtin:docs@heldout`).
        output: Folder for the tuned checkpoint; with `Optimization(lora=...)` it is that of a PEFT adapter.
        optimization: Optimizer, learning rate, steps, batch size, and whether a LoRA adapter is trained.
        rehearsal: Old data to mix into the training data; None trains on `data` alone.
        guidance: An instruction vector of the base, towards whose predictions the training is drawn; None trains
            without. The training data then need prompts. A step takes one more forward pass (with SAM two), and a copy
            of the base is in memory; the training losses of the record have the term in them.
        seed: Seed, in [0, 2**32), for the order of the examples, dropout, the initial weights of a LoRA adapter, and
            for which examples `data_options.limit` and `rehearsal` draw.
        data_options: How the data are read. `batch_tokens` is the memory of the evaluation alone; training takes
            `batch_size` examples.
        load_options: Device, and whether code of the checkpoint may run. The device is one: "auto", "cpu", "mps", or
            "cuda" for the first visible GPU. Weights are trained in float32, an adapter is merged into its base first.
        saving: How often the run saves what it needs to continue, and what it keeps of its trajectory.
        progress: Whether a progress bar is shown.

    Returns:
        `output` as a path.

    Raises:
        InputError: An argument is wrong, `output` holds something else, or the loss or the weights stop being finite;
            in the last case nothing is written.

    Example:
        A model of four words learns the one sentence that there is, with SAM.

        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
        >>> from landscape import LoadOptions, Optimization, finetune, load_checkpoint, save_checkpoint
        >>> words = Tokenizer(models.WordLevel({"to": 0, "be": 1, "or": 2, "not": 3}, unk_token="to"))
        >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> shape = {"vocab_size": 4, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1}
        >>> _ = torch.manual_seed(0)
        >>> model = LlamaForCausalLM(LlamaConfig(**shape, num_hidden_layers=1))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     base, sentence = Path(folder, "base"), Path(folder, "sentence.jsonl")
        ...     _ = save_checkpoint(model, PreTrainedTokenizerFast(tokenizer_object=words), base)
        ...     _ = sentence.write_text('{"text": "to be or not to be"}')
        ...     sam = Optimization(optimizer="sam", rho=0.05, lr=0.01, steps=3)
        ...     where = LoadOptions(device="cpu")
        ...     tuned = finetune(
        ...         base, sentence, Path(folder, "sam"), optimization=sam, load_options=where, progress=False
        ...     )
        ...     record = load_checkpoint(tuned, device="cpu").metadata
        >>> record["optimizer"], record["rho"], record["steps_taken"]
        ('sam', 0.05, 3)
        >>> record["losses"]["evaluated_after"] < record["losses"]["evaluated_before"]
        True
    """
    if not 0 <= seed < 2**32:
        raise InputError(f"{as_typed('seed', seed)} is not in [0, 2**32).")
    _check_load_options(load_options)
    _require_accelerate()
    trusted = load_options.trust_remote_code
    files = inspect_checkpoint(base, trust_remote_code=trusted)
    start = load_files(files, device=load_options.device, trust_remote_code=trusted)
    data_options = replace(
        data_options, max_length=min(data_options.max_length, files.max_positions or data_options.max_length)
    )
    train, evaluated, read_with = load_parts(data, start.tokenizer, data_options, optimization, seed, files)
    old = load_rehearsal(rehearsal, start.tokenizer, len(train.examples), data_options, seed, files)
    settings = {
        "base": start.describe(),
        "data": describe_data(train),
        "evaluated_on": describe_data(evaluated) | {"max_length": data_options.max_length} | read_with,
        "optimizer": optimization.optimizer,
        "rho": optimization.radius,
        "lr": optimization.lr,
        "epochs": optimization.epochs if optimization.steps is None else None,
        "steps": optimization.steps,
        "batch_size": optimization.batch_size,
        "accumulate": optimization.accumulate,
        "lora": optimization.lora,
        "rehearse": describe_data(old) | {"ratio": rehearsal.ratio} if rehearsal and old else None,
        "keep_trajectory": saving.keep_trajectory,
        "max_length": data_options.max_length,
        "seed": seed,
    }
    if guidance is not None:
        if optimization.optimizer == "functional-sam":
            raise InputError(
                f"{as_typed('optimizer', 'functional-sam')} keeps the derivative of the loss of the data alone, "
                f"and does not go with {as_typed('guide')}."
            )
        _check_guidance(guidance, start, train)
        vector = {"vector": digest_of(guidance.vector), "layer": guidance.layer, "task": guidance.task}
        settings["guidance"] = vector | {"weight": guidance.weight}
    output = Path(output)
    workplace = output.with_name(output.name + ".training")
    if os.path.lexists(output):
        _require_same_run(output, settings, trusted)
        if (workplace / "settings.json").exists() and read_json(workplace / "settings.json") == to_plain(settings):
            _finish(workplace, output)  # The run was killed after it had saved its result.
        return output
    with results_folder(workplace, settings) as training:
        started = time.perf_counter()
        guided = None if guidance is None else (guidance, copy.deepcopy(start.model).requires_grad_(False).eval())
        model: Any = start.model if optimization.lora is None else with_lora(start, optimization.lora, seed)
        with preserved(model):
            objective = Objective(model, evaluated)  # One for both evaluations: its checks of model and data cost, too.
            before = objective.loss().mean
        if not math.isfinite(before):
            raise InputError(f"the loss of {base} on {evaluated.source} is {before}; there is nothing to start from.")
        callbacks: list[TrainerCallback] = [Progress(f"{output.name} ({optimization.optimizer})", progress)]
        if saving.keep_trajectory is not None:
            about = settings | {"format": "landscape/checkpoint"}
            kept = training / TRAJECTORY
            callbacks.append(KeepTrajectory(saving.keep_trajectory, kept, start.tokenizer, about))
        trainer = make_trainer(
            model,
            [*train.examples, *(old.examples if old else ())],
            training_arguments(
                training,
                learning_rate=optimization.lr,
                num_train_epochs=optimization.epochs,
                max_steps=optimization.steps or -1,
                per_device_train_batch_size=optimization.batch_size // optimization.accumulate,
                gradient_accumulation_steps=optimization.accumulate,
                save_steps=saving.save_every,
                seed=seed,
                use_cpu=resolve_device(load_options.device).type == "cpu",
            ),
            sam=optimization.sam,
            callbacks=callbacks,
            guided=guided,
        )
        try:
            model, state = _train(trainer, model, training, load_options)
            try:
                after = _mean_loss(model, evaluated, objective)
            except InputError as error:  # Before the run, the same model on the same data had none.
                raise Diverged(f"the loss after the last step cannot be measured: {error}".rstrip(".")) from error
            _check_finite(model, after)
        except Diverged as error:
            _empty(training)
            cure = "lower lr" if optimization.radius is None else "lower lr or rho"
            raise InputError(f"the run diverged: {error}; {cure}. Nothing was written.") from error
        losses = [entry["loss"] for entry in state.log_history if "loss" in entry]  # There is one for every step.
        record = settings | {
            "format": "landscape/checkpoint",
            "steps_taken": state.global_step,
            "losses": dict(zip(_LOSSES, (sum(losses) / len(losses), before, after), strict=True)),
            "versions": installed_versions(),
            "seconds": time.perf_counter() - started,  # Those of this process; a continued run has spent more.
        }
        save_checkpoint(model, start.tokenizer, output, record)
    _finish(workplace, output)
    return output


def _train(trainer: Trainer, model: Any, training: Path, load_options: LoadOptions) -> tuple[Any, TrainerState]:
    """Train from where the folder's last training checkpoint stands; the model at the end and the Trainer's state."""
    last = _last_checkpoint(training)
    if last is not None:
        state = TrainerState.load_from_json(str(Path(last) / "trainer_state.json"))
        if state.global_step >= state.max_steps:  # Only saving was left; the Trainer would take one step more.
            trusted = load_options.trust_remote_code
            reached = inspect_checkpoint(last, trust_remote_code=trusted)
            loaded = load_files(reached, device=load_options.device, adapter="keep", trust_remote_code=trusted)
            return loaded.model, state
    trainer.train(resume_from_checkpoint=last)
    return model, trainer.state


def _finish(workplace: Path, output: Path) -> None:
    """Move the trajectory that the run kept to its result, and delete the run's workplace."""
    kept = workplace / TRAJECTORY
    if kept.exists() and not (output / TRAJECTORY).exists():
        os.replace(kept, output / TRAJECTORY)
    shutil.rmtree(workplace, ignore_errors=True)


def _check_finite(model: torch.nn.Module, loss: float) -> None:
    """Raise Diverged unless the loss and all weights are finite."""
    for name, parameter in model.named_parameters():
        if not all_finite(parameter):
            raise Diverged(f"{name} is not finite after the last step")
    if not math.isfinite(loss):
        raise Diverged(f"the loss after the last step is {loss}")


def _empty(folder: Path) -> None:
    """Delete what the folder holds, but not the folder."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _require_accelerate() -> None:
    """Raise InputError where accelerate, which the Trainer needs, is not installed."""
    try:
        import accelerate  # noqa: F401
    except ImportError as error:
        raise InputError("fine-tuning needs accelerate: pip install 'landscape-lm[train]'.") from error


def _check_load_options(options: LoadOptions) -> None:
    """Raise InputError where a model cannot be trained as it would be loaded."""
    as_trained = LoadOptions(device=options.device, trust_remote_code=options.trust_remote_code)
    if options != as_trained:
        raise InputError(
            "fine-tuning trains float32 weights on one device, with an adapter merged into its base; leave dtype, "
            "device_map and adapter of load_options as they are."
        )
    place = resolve_device(options.device)
    if place.type not in ("cpu", "cuda", "mps") or place.index not in (None, 0):
        raise InputError(
            f"{as_typed('device', options.device)}: fine-tuning runs on the first visible GPU; set "
            "CUDA_VISIBLE_DEVICES."
        )


def _check_guidance(guidance: Guidance, start: Checkpoint, train: TokenData) -> None:
    """Raise InputError where a vector is not of the base, or the training data have no prompts for it to act on."""
    if guidance.checkpoint != start.digest:
        raise InputError(
            f"the instruction vector of task {guidance.task} is of another checkpoint than {start.source}; guidance "
            "takes one of the base."
        )
    if guidance.layer >= attention_of(start.model).layers:
        raise InputError(f"{start.source} has no layer {guidance.layer} for the vector of task {guidance.task}.")
    if all(example.labels[1] != IGNORED for example in train.examples):  # as in running text
        raise InputError(
            f"{train.source} has no example with a prompt, but guidance acts on the last token of prompts; give "
            "records of prompt and completion."
        )


def _last_checkpoint(folder: Path) -> str | None:
    """Return the last training checkpoint that was written whole, and remove those that a kill left torn."""
    while (last := get_last_checkpoint(str(folder))) is not None:
        try:
            TrainerState.load_from_json(str(Path(last) / "trainer_state.json"))  # The Trainer writes it last.
        except (OSError, ValueError, TypeError):
            shutil.rmtree(last)
        else:
            return last
    return None


def _mean_loss(model: Any, data: TokenData, objective: Objective) -> float:
    """Return the mean loss per supervised token; the model comes back as it was.

    Args:
        model: The tuned model.
        data: The examples to evaluate on.
        objective: The loss of the model at the start, which is another one where only saving was left.
    """
    with preserved(model):
        return (objective if model is objective.model else Objective(model, data)).loss().mean


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
    files = inspect_checkpoint(output, trust_remote_code=trust_remote_code)
    load_tokenizer(files)  # Every file was read by now; one that is missing or damaged was named.

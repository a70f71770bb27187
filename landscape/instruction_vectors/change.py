"""Comparing the instruction vectors of a tuned model with those of its base."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from landscape.checkpoints import Checkpoint
from landscape.errors import InputError, MeasurementWarning, as_typed
from landscape.instruction_vectors.changed import AccuracyChange, InstructionVectorChange, Recovery, TaskChange
from landscape.instruction_vectors.effects import top_heads
from landscape.instruction_vectors.prompts import VectorOptions
from landscape.instruction_vectors.result import Estimate, InstructionVector, check_statistics, fall_of, mean_of
from landscape.instruction_vectors.runs import answers_with_vectors_added
from landscape.instruction_vectors.tasks import InContextTask
from landscape.instruction_vectors.vector import (
    Site,
    Statistics,
    joint_effects,
    measure_vector,
    open_site,
    steering_layer,
)
from landscape.objective.scope import Run
from landscape.results import Provenance, to_plain
from landscape.weights.preservation import preserved

_RANDOM_VECTORS = 5  # whose gains are averaged

# Called with the site, the task, and whether it is the base, which must be able to do it.
Measure = Callable[[Site, InContextTask, bool], InstructionVector]


def compare_instruction_vectors(
    base: nn.Module | Checkpoint,
    tuned: nn.Module | Checkpoint,
    tasks: Mapping[str, InContextTask],
    *,
    tokenizer: Any = None,
    options: VectorOptions = VectorOptions(),
    confidence: float = 0.95,
    resamples: int = 9999,
    batch_tokens: int = 4096,
    seed: int = 0,
    base_vectors: Mapping[str, InstructionVector] | None = None,
) -> InstructionVectorChange:
    """Compare the instruction vectors of a tuned model with those of its base, task by task, on the same prompts.

    Beside the cosine of the vectors and the heads in common stand the effect of the base's heads in both models, the
    few-shot and zero-shot accuracy that was lost, and whether the base's vector, added to the tuned model, brings lost
    answers back where random vectors and the vector of another task do not. Both models are in memory at once, and come
    back bit for bit as they were. MeasurementWarning where the base's vector brings the base itself no answer, so that
    nothing can be asked of its bringing answers back.

    Args:
        base: The model before tuning, or its checkpoint.
        tuned: The model after tuning, or its checkpoint.
        tasks: The tasks by name, as `load_tasks` reads them. The vector of another task is that of the next one.
        tokenizer: The tokenizer of both models; a checkpoint brings its own.
        options: How vectors are made.
        confidence: Confidence of the intervals. Those of cosines and overlaps are percentiles of resampled prompts, and
            the heads are chosen anew for each resample of overlaps; those of answers that were lost or gained are score
            intervals (Tango 1998); the others are studentized.
        resamples: Bootstrap samples.
        batch_tokens: Tokens in memory at once, at most.
        seed: Seed of all draws.
        base_vectors: Vectors of the base by task that `compute_instruction_vector` has made with the same options and
            seed, so that several tuned models share them; the others are measured here.

    Raises:
        InputError: There is no task, the base cannot do one, the models have different shapes, a task does not suit, or
            one of `base_vectors` is of something else.

    Source:
        Jiang et al. 2024 (arXiv 2406.12227); Jiang et al. 2025 (arXiv 2502.11019) for the similarity of vectors.

    Example:
        A model against itself has lost nothing: see `landscape instruction-vectors --base`.

        >>> from landscape import compare_instruction_vectors
        >>> try:
        ...     compare_instruction_vectors(None, None, {})
        ... except ValueError as error:
        ...     print(error)
        there is no in-context task to compare the models on.
    """
    check_statistics(confidence, resamples)
    known, statistics = base_vectors or {}, Statistics(confidence, resamples, seed)

    def measure(site: Site, task: InContextTask, is_base: bool) -> InstructionVector:
        if is_base and task.name in known:
            _check_known(known[task.name], site, task, options, seed)
            return known[task.name]
        return measure_vector(site, task, options, statistics, Run(), must_do=is_base)

    return compare_by(measure, base, tuned, tasks, tokenizer, options, statistics, batch_tokens)


def compare_by(
    measure: Measure,
    base: nn.Module | Checkpoint,
    tuned: nn.Module | Checkpoint,
    tasks: Mapping[str, InContextTask],
    tokenizer: Any,
    options: VectorOptions,
    statistics: Statistics,
    batch_tokens: int,
) -> InstructionVectorChange:
    """Do what `compare_instruction_vectors` does, with vectors that `measure` returns."""
    started, seed = time.perf_counter(), statistics.seed
    if not tasks:
        raise InputError("there is no in-context task to compare the models on.")
    pairs = {}
    for name, task in tasks.items():
        sites = [open_site(model, task, tokenizer, options, seed, batch_tokens) for model in (base, tuned)]
        _check_same_shape(*sites)
        pairs[name] = sites
    vectors = {name: measure(pairs[name][0], task, True) for name, task in tasks.items()}
    _warn_of_idle(vectors)
    after = {name: measure(pairs[name][1], task, False) for name, task in tasks.items()}
    names = list(tasks)
    changes = []
    for index, name in enumerate(names):
        other = vectors[names[(index + 1) % len(names)]] if len(names) > 1 else None
        first, second = pairs[name]
        changes.append(_task_change(name, first, second, vectors[name], after[name], other, statistics))
    first_site, tuned_site = pairs[names[0]]
    parameter = next(tuned_site.model.parameters())
    return InstructionVectorChange(
        name=tuned_site.name,
        base=first_site.name,
        tasks=tuple(changes),
        confidence=statistics.confidence,
        resamples=statistics.resamples,
        provenance=Provenance(
            settings=dataclasses.asdict(options)
            | {"confidence": statistics.confidence, "resamples": statistics.resamples},
            seed=seed,
            checkpoint={"base": first_site.described, "tuned": tuned_site.described},
            data={name: {"source": task.source, "digest": task.digest} for name, task in tasks.items()},
            device=str(parameter.device),
            dtype=str(parameter.dtype).removeprefix("torch."),
            seconds=time.perf_counter() - started,
        ),
    )


def _warn_of_idle(vectors: Mapping[str, InstructionVector]) -> None:
    """Warn of tasks in which the vector brings the base itself no answer: it cannot bring back what tuning lost."""
    idle = [name for name, vector in vectors.items() if vector.steered.value <= vector.zero_shot.value]
    if idle:
        layers = sorted({vectors[name].layer for name in idle})
        warnings.warn(
            f"without examples the base itself answers no more of {', '.join(idle)} with its vector at layer "
            f"{', '.join(map(str, layers))} than without: whether it brings back what tuning lost cannot be asked "
            f"there; try another {as_typed('layer')}.",
            MeasurementWarning,
            stacklevel=4,
        )


def _check_known(vector: InstructionVector, site: Site, task: InContextTask, options: VectorOptions, seed: int) -> None:
    """Raise InputError where a vector is not that of a site and a task with these options and this seed."""
    made, expected = vector.provenance, dataclasses.asdict(options) | {"layer": steering_layer(options, site.attention)}
    is_it = (
        made.seed == seed
        and to_plain(made.checkpoint) == to_plain(site.described)
        and (made.data or {}).get("digest") == task.digest
        and {name: made.settings.get(name) for name in expected} == expected
    )
    if not is_it:
        raise InputError(
            f"base_vectors[{task.name!r}] is not of {site.name} and this task with these options and this seed."
        )


def _check_same_shape(base: Site, tuned: Site) -> None:
    """Raise InputError where the models have different heads or widths, or ask in different tokens."""
    width = [site.model.get_input_embeddings().weight.shape[1] for site in (base, tuned)]  # type: ignore[operator]
    if base.attention.describe() != tuned.attention.describe() or width[0] != width[1]:
        raise InputError(
            f"{base.name} has {base.attention.describe()} and width {width[0]}, but {tuned.name} has "
            f"{tuned.attention.describe()} and width {width[1]}: it was not tuned from there."
        )
    if base.prompts != tuned.prompts:
        raise InputError(f"{base.name} and {tuned.name} have different tokenizers, so their prompts do not compare.")


def _task_change(
    name: str,
    base: Site,
    tuned: Site,
    before: InstructionVector,
    after: InstructionVector,
    other: InstructionVector | None,
    statistics: Statistics,
) -> TaskChange:
    """Compare one task."""
    over = (statistics.confidence, statistics.resamples, statistics.seed)
    heads, sites = before.heads, (base, tuned)
    outputs = [site.clean[0] for site in sites]
    judged = [[answered[:, 1] for answered in (site.few_shot, site.zero_shot)] for site in sites]
    joint = []
    for site, of_heads in zip(sites, outputs, strict=True):
        with preserved(site.model):
            joint.append(joint_effects(site, heads, of_heads.mean(0), statistics.seed, draws=0)[0])
    written = [
        [site.attention.written(of_heads, chosen).double().cpu().numpy() for chosen in (heads, of_model.heads)]
        for site, of_heads, of_model in zip(sites, outputs, (before, after), strict=True)
    ]
    lost = [fall_of(b - t, statistics.confidence) for b, t in zip(*judged, strict=True)]
    changes = [AccuracyChange(float(b.mean()), float(t.mean()), fall) for b, t, fall in zip(*judged, lost, strict=True)]
    count = len(heads)
    return TaskChange(
        task=name,
        cosine=_cosine(written[0][0], written[1][0], statistics),
        cosine_own_heads=_cosine(written[0][1], written[1][1], statistics),
        overlap=_overlap(before.effects, after.effects, count, statistics),
        overlap_again=_overlap_again(before.effects, count, statistics),
        overlap_random=count / before.effects[0].size,
        effect_before=float(joint[0].mean()),
        effect_after=float(joint[1].mean()),
        effect_lost=mean_of(joint[0] - joint[1], *over),
        few_shot=changes[0],
        zero_shot=changes[1],
        recoveries=_recoveries(tuned, before, other, judged[1], statistics),
    )


def _recoveries(
    tuned: Site,
    before: InstructionVector,
    other: InstructionVector | None,
    without: list[np.ndarray],
    statistics: Statistics,
) -> tuple[Recovery, ...]:
    """Add vectors to the tuned model, and see what it then answers."""
    over = (statistics.confidence, statistics.resamples, statistics.seed)
    length = float(np.linalg.norm(before.vector))
    drawn = np.random.default_rng(statistics.seed).standard_normal((_RANDOM_VECTORS, len(before.vector)))
    vectors = {"base": before.vector[None], "random": length * drawn / np.linalg.norm(drawn, axis=1, keepdims=True)}
    if other is not None:
        vectors["other task"] = (length / np.linalg.norm(other.vector) * other.vector)[None]
    stacked = torch.as_tensor(np.concatenate(list(vectors.values())), dtype=torch.float32)
    ends = np.cumsum([len(several) for several in vectors.values()])[:-1]
    recoveries = []
    with preserved(tuned.model):
        for words, prompts, plain in zip(
            ("few-shot", "zero-shot"), (tuned.prompts.few_shot, tuned.prompts.zero_shot), without, strict=True
        ):
            right = answers_with_vectors_added(
                tuned.model, tuned.attention, before.layer, prompts, stacked, tuned.batch_tokens
            )[:, :, 1]
            parts = np.split(right, ends, axis=1)
            steered = {kind: part.mean(1) for kind, part in zip(vectors, parts, strict=True)}
            for kind, share in steered.items():
                change, limits = share - plain, (-1.0, 1.0)
                # With random vectors a prompt has a share of right answers, and no one answer.
                random = kind == "random"
                over_random = None if random else mean_of(share - steered["random"], *over, limits)
                gained = mean_of(change, *over, limits) if random else fall_of(change, statistics.confidence)
                recoveries.append(Recovery(words, kind, float(share.mean()), gained, over_random))
    return tuple(recoveries)


def _cosine(before: np.ndarray, after: np.ndarray, statistics: Statistics) -> Estimate:
    """Return the cosine of the means over prompts, with percentiles over resampled prompts; each (prompts, width)."""

    def cosine(weights: np.ndarray) -> np.ndarray:
        b, a = weights @ before, weights @ after
        return (b * a).sum(-1) / np.maximum(np.linalg.norm(b, axis=-1) * np.linalg.norm(a, axis=-1), 1e-300)

    value = float(cosine(np.full((1, len(before)), 1 / len(before)))[0])
    return Estimate(value, *_percentiles(cosine(_resampled(len(before), statistics)), statistics.confidence))


def _overlap(before: np.ndarray, after: np.ndarray, count: int, statistics: Statistics) -> Estimate:
    """Return the share of heads in common, with percentiles over resampled prompts, for which heads are chosen anew."""
    value = _in_common(before.mean(0), after.mean(0), count)
    again = [
        _in_common(np.tensordot(w, before, 1), np.tensordot(w, after, 1), count)
        for w in _resampled(len(before), statistics)[:_MOST_CHOICES]
    ]
    return Estimate(value, *_percentiles(np.array(again), statistics.confidence))


_MOST_CHOICES = 2000  # resamples for which heads are chosen anew


def _overlap_again(effects: np.ndarray, count: int, statistics: Statistics) -> float:
    """Return the mean share of heads in common between effects and those of resampled prompts."""
    mean = effects.mean(0)
    drawn = _resampled(len(effects), statistics)[:_MOST_CHOICES]
    return float(np.mean([_in_common(mean, np.tensordot(w, effects, 1), count) for w in drawn]))


def _in_common(before: np.ndarray, after: np.ndarray, count: int) -> float:
    """Return the share of the top heads of one table of effects that are among those of the other."""
    return len(set(top_heads(before, count)) & set(top_heads(after, count))) / count


def _resampled(prompts: int, statistics: Statistics) -> np.ndarray:
    """Return how much each prompt weighs in each bootstrap sample, (resamples, prompts)."""
    generator = np.random.default_rng(statistics.seed)
    return generator.multinomial(prompts, np.full(prompts, 1 / prompts), statistics.resamples) / prompts


def _percentiles(values: np.ndarray, confidence: float) -> tuple[float, float]:
    """Return the ends of the interval that holds the share `confidence` of the values."""
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)

"""Instruction vectors in the study of a real model: what tuning changed of them, and what brings lost answers back."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

import landscape


def base_vectors(folder: Path, base: Any, settings: dict) -> dict[str, Any]:
    """The base's vector of each in-context task, made once and kept in the folder."""
    of = settings["instruction_vectors"]
    if not of["tasks"]:
        return {}
    tasks, made = landscape.load_tasks("builtin:words"), {}
    for name in of["tasks"]:
        file = folder / f"{name}.json"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            landscape.compute_instruction_vector(base, tasks[name], **_common(settings)).save(file)
        made[name] = landscape.InstructionVector.load(file)
    return made


def vectors_changed(folder: Path, base: Any, after: Any, settings: dict) -> dict[str, float]:
    """What a checkpoint changed of each task, and the means over tasks; nothing where the settings name no task."""
    known = base_vectors(folder, base, settings)
    if not known:
        return {}
    tasks = landscape.load_tasks("builtin:words")
    chosen = {name: tasks[name] for name in known}
    change = landscape.compare_instruction_vectors(base, after, chosen, base_vectors=known, **_common(settings))
    rows = {task.task: _row(task) for task in change.tasks}
    means = {
        f"instruction_vector_{name}": float(np.mean([row[name] for row in rows.values()]))
        for name in next(iter(rows.values()))
    }
    return means | {f"instruction_vector_{name}_{task}": row[name] for task, row in rows.items() for name in row}


def _row(task: Any) -> dict[str, float]:
    gained = {r.vector: r.gained.value for r in task.recoveries if r.prompts == "few-shot"}
    vectors = {"base": "base", "random": "random", "other": "other task"}  # there is no other of a single task
    return {
        "cosine": task.cosine.value,
        "heads_kept": task.overlap.value,
        "effect_lost": task.effect_lost.value,
        "few_shot_lost": task.few_shot.lost.value,
        "zero_shot_lost": task.zero_shot.lost.value,
        **{f"gained_with_{name}": gained.get(vector, math.nan) for name, vector in vectors.items()},
    }


def _common(settings: dict) -> dict[str, Any]:
    of = settings["instruction_vectors"]
    options = landscape.VectorOptions(shots=of["shots"], prompts=of["prompts"])
    # Of most of these tokens only keys and values are in memory, 46 kB each: 750 MB for all sets of heads at once.
    tokens = 16 * settings["batch_tokens"]
    return {"options": options, "batch_tokens": tokens, "seed": settings["seed"], "resamples": 99}

"""Do instruction vectors explain what a real language model forgets? SmolLM2-135M-Instruct after word problems.

python analyses/instruction_vectors.py --output OUT --rows FILE [--settings TOML]

The plan was written down first, in analyses/instruction_vectors.md. FILE (JSON, one row a line) is read first, so that
nothing in it is computed again, and gets every row that is finished; a run that was stopped continues. Tuned
checkpoints stay in OUT until the end. analyses/instruction_vectors_results.py makes the verdicts.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from smollm2 import Place, base_of, hand_over, identity, take_over
from smollm2_texts import split_task
from study_folder import claim, read_settings, versions

import landscape

PLAN = Path(__file__).with_suffix(".md")
METHODS = ("adamw", "guided", "lora", "sam")  # in the order of what is asked first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rows", type=Path, required=True, help="the rows that are finished, and where they are kept")
    parser.add_argument("--settings", type=Path, default=Path(__file__).with_suffix(".toml"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    try:
        run(arguments.output, arguments.rows, read_settings(arguments.settings, quick=False))
    except (landscape.InputError, OSError, tomllib.TOMLDecodeError) as error:
        sys.exit(f"error: {error}")


def run(output: Path, rows: Path, settings: dict) -> None:
    """Do what is missing in `rows`."""
    base = landscape.fetch(settings["model"])
    bigbench = landscape.fetch(f"bigbench:{','.join(settings['tasks'].values())}")
    place = Place(output, settings, base, bigbench, identity(settings, base))
    plan = {"file": PLAN.name, "sha256": hashlib.sha256(PLAN.read_bytes()).hexdigest()}
    claim(output / "study.json", identity=place.identity, hypotheses=plan, versions=versions())
    take_over(place, rows)
    vectors = base_vectors(place)
    for name, vector in vectors.items():
        place.row(f"base/{name}", lambda name=name, vector=vector: base_row(name, vector))
    hand_over(place, rows)
    for pair in settings["lists"]["pairs"]:
        control(place, vectors, pair)
        hand_over(place, rows)
    for rate in settings["rates"]:
        for method in METHODS:
            for pair in settings["lists"]["pairs"]:
                compare(place, vectors, rate, method, pair)
                hand_over(place, rows)
        files = [place.file_of(f"{rate['name']}/adamw/{name}") for name in vectors]
        lost = [json.loads(file.read_text("utf-8"))["few_shot_lost"] for file in files]
        if np.mean(lost) >= settings["rule"]["enough"]:
            break
    for name in settings["lists"]["layers"]:
        place.row(f"layers/{name}", lambda name=name: layers_row(place, name, vectors[name]))
    hand_over(place, rows)


# --- in-context tasks and the base's vectors ----------------------------------------------------------------


def lists_of(place: Place) -> dict[str, tuple[landscape.InContextTask, tuple]]:
    """Each list with as many words as the study takes, and the words that are left. All answers are one token."""
    of, known, tokenizer = place.settings["lists"], landscape.load_tasks("builtin:words"), base_of(place.base).tokenizer
    made = {}
    for name in (name for pair in of["pairs"] for name in pair):
        usable = tuple(
            pair for pair in known[name].pairs if len(tokenizer(f" {pair[1]}", add_special_tokens=False).input_ids) == 1
        )
        made[name] = dataclasses.replace(known[name], pairs=usable[: of["words"]]), usable[of["words"] :]
    return made


def base_vectors(place: Place) -> dict[str, landscape.InstructionVector]:
    """The base's vector of each list, made once and kept in the folder."""
    made = {}
    for name, (task, _) in lists_of(place).items():
        file = place.output / "vectors" / f"{name}.json"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            journal = landscape.Run(journal=file.with_suffix(".journal"), progress=False)
            base = base_of(place.base)
            landscape.compute_instruction_vector(base, task, run=journal, **common(place.settings)).save(file)
        made[name] = landscape.InstructionVector.load(file)
    return made


def base_row(name: str, vector: landscape.InstructionVector) -> dict[str, Any]:
    """What the base does of one list."""
    row: dict[str, Any] = {"kind": "base", "list": name, "heads": vector.heads, "layer": vector.layer}
    row |= {"questions": vector.questions, "length": float(np.linalg.norm(vector.vector))}
    for field in ("few_shot", "zero_shot", "steered", "joint_effect", "random_effect"):
        row |= with_ends(field, getattr(vector, field))
    return row


def with_ends(name: str, estimate: Any) -> dict[str, float]:
    """A number and the ends of its interval, which is over prompts."""
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def common(settings: dict) -> dict[str, Any]:
    of = settings["lists"]
    options = landscape.VectorOptions(shots=of["shots"], prompts=of["prompts"], heads=of["heads"], layer=of["layer"])
    shared = {name: settings[name] for name in ("batch_tokens", "seed", "resamples")}
    return {"options": options, **shared}


# --- tuned checkpoints --------------------------------------------------------------------------------------


def compare(place: Place, vectors: dict[str, landscape.InstructionVector], rate: dict, method: str, pair: list) -> None:
    """Compare a tuned checkpoint with the base on two lists; a row for each of them."""
    names = {name: f"{rate['name']}/{method}/{name}" for name in pair}
    if all(place.file_of(row).exists() for row in names.values()):
        return
    tuned = landscape.load_checkpoint(tune(place, vectors, rate, method), device="cpu")
    losses = tuned.metadata["losses"]
    shared = {"kind": "tuned", "method": method, "rate": rate["name"], "lr": tuned.metadata["lr"]}
    shared |= {"learned": losses["evaluated_before"] - losses["evaluated_after"]}
    shared["tuning_seconds"] = tuned.metadata["seconds"]
    write_rows(place, vectors, tuned, names, shared)


def control(place: Place, vectors: dict[str, landscape.InstructionVector], pair: list) -> None:
    """Compare the base with itself: what vectors do where nothing was lost."""
    names = {name: f"control/{name}" for name in pair}
    if not all(place.file_of(row).exists() for row in names.values()):
        write_rows(place, vectors, base_of(place.base), names, {"kind": "control"})


def write_rows(
    place: Place, vectors: dict[str, landscape.InstructionVector], after: Any, names: dict[str, str], shared: dict
) -> None:
    """Compare a model with the base on the lists of `names`, which says what their rows are called."""
    started, lists = time.process_time(), lists_of(place)
    change = landscape.compare_instruction_vectors(
        base_of(place.base), after, {name: lists[name][0] for name in names}, base_vectors=vectors,
        **common(place.settings),
    )  # fmt: skip
    shared = shared | {"comparing_cpu_seconds": (time.process_time() - started) / len(names)}
    for task in change.tasks:
        place.row(names[task.task], lambda task=task: {**shared, "list": task.task, **task_row(task)})


def tune(place: Place, vectors: dict[str, landscape.InstructionVector], rate: dict, method: str) -> Path:
    """The folder of a fine-tuned checkpoint, made once."""
    of, guidance = place.settings["tuning"], None
    if method == "guided":
        some = next(iter(vectors.values()))
        mean = np.mean([vector.vector for vector in vectors.values()], axis=0)
        digest = base_of(place.base).digest
        guidance = landscape.Guidance(tuple(mean.tolist()), some.layer, digest, "mean of the lists", of["weight"])
    return landscape.finetune(
        place.base, split_task(place.data, place.bigbench, "math", place.settings)["training"],
        place.output / "checkpoints" / f"{rate['name']}-{method}",
        optimization=landscape.Optimization(
            optimizer="sam" if method == "sam" else "adamw", rho=of["rho"] if method == "sam" else None,
            lr=rate["lora" if method == "lora" else "full"], steps=of["steps"], batch_size=of["batch_size"],
            lora=of["lora"] if method == "lora" else None,
        ),
        guidance=guidance, seed=of["seed"],
        data_options=landscape.DataOptions(place.settings["max_length"], batch_tokens=1024, limit=of["examples"]),
        load_options=landscape.LoadOptions(device="cpu"), progress=False,
    )  # fmt: skip


def task_row(task: Any) -> dict[str, Any]:
    """What tuning changed of one list."""
    row: dict[str, Any] = {}
    for field in ("cosine", "cosine_own_heads", "overlap", "effect_lost"):
        row |= with_ends(field, getattr(task, field))
    for field in ("overlap_again", "overlap_random", "effect_before", "effect_after"):
        row[field] = getattr(task, field)
    for name, change in (("few_shot", task.few_shot), ("zero_shot", task.zero_shot)):
        row |= {f"{name}_before": change.before, f"{name}_after": change.after}
        row |= with_ends(f"{name}_lost", change.lost)
    for recovery in task.recoveries:
        words = f"{recovery.prompts}_gained_with_{recovery.vector}".replace("-", "_").replace(" ", "_")
        row |= with_ends(words, recovery.gained)
    return row


# --- the layer that a vector is added to --------------------------------------------------------------------


def layers_row(place: Place, name: str, vector: landscape.InstructionVector) -> dict[str, Any]:
    """Zero-shot accuracy of the base with its vector at each layer, on words that the vector was not made from."""
    task, left = lists_of(place)[name]
    base = base_of(place.base)
    layers = range(len(base.model.model.layers))
    found = {layer: share_right(base, task.instruction, left, vector.vector, layer) for layer in layers}
    without = share_right(base, task.instruction, left, np.zeros_like(vector.vector), 0)
    return {
        "kind": "layers",
        "list": name,
        "questions": len(left),
        "zero_shot": without,
        "steered": list(found.values()),
    }


@torch.no_grad()
def share_right(base: Any, instruction: str, pairs: tuple, vector: np.ndarray, layer: int) -> float:
    """The share of right first tokens without examples, with a vector added to one layer's attention output."""
    added = torch.tensor(vector, dtype=torch.float32)

    def add(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        output[:, -1] += added
        return output

    hook = base.model.model.layers[layer].self_attn.o_proj.register_forward_hook(add)
    try:
        right = 0
        for asked, answer in pairs:
            text = f"{instruction}\n\nQ: {asked}\nA:"
            tokens = base.tokenizer(text, return_tensors="pt").input_ids
            (expected,) = base.tokenizer(f" {answer}", add_special_tokens=False).input_ids
            right += int(base.model(tokens).logits[0, -1].argmax()) == expected
        return right / len(pairs)
    finally:
        hook.remove()


if __name__ == "__main__":
    main()

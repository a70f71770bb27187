"""How much each sharpness metric moves when the weights change and the function does not (Dinh et al. 2017).

python analyses/invariance.py --output OUT [--checkpoint LLAMA [--base BASE]] [--data SOURCE] [--settings TOML]

Without a checkpoint, a tiny Llama is trained on the spot. OUT/invariance.csv has a row for each transformation and
metric, OUT/invariance.json the settings and versions. A run that was stopped goes on where it was; a folder of other
settings is refused. Draw the table with figures/invariance.py.

Columns of the table: `ratio` is after / before. `exact` says that it has no sampling error, either because the metric
draws nothing at random or because the same random numbers are the same perturbation of the function before and after;
elsewhere it is known to the standard errors. `function_error` is the largest change of a log-probability of any token
at any position of the data, in nats.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import os
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from llama_symmetries import Symmetry, is_tied, symmetries_of
from study_folder import claim, versions

import landscape

COLUMNS = (
    *("transformation", "metric", "options", "before", "after", "ratio"),
    *("stderr_before", "stderr_after", "exact", "function_error"),
)
UNCHANGED = "none"  # the transformation of the rows that hold the values before
SAMPLED = {
    "trace": "none",
    "adaptive_trace": "adaptive",
    "local_learning_coefficient": "none",
}  # metrics that draw at random, and the scale of what they draw


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--checkpoint", help="a Llama (default: a tiny one, trained on the spot)")
    parser.add_argument("--base", help="what it was tuned from (default: a point nearby)")
    parser.add_argument("--data", default="builtin:docs")
    parser.add_argument("--settings", type=Path, default=Path(__file__).with_suffix(".toml"))
    arguments = parser.parse_args()
    try:
        settings = tomllib.loads(arguments.settings.read_text(encoding="utf-8"))
        run(arguments.output, settings, arguments.checkpoint, arguments.base, arguments.data)
    except (landscape.InputError, OSError, tomllib.TOMLDecodeError) as error:
        sys.exit(f"error: {error}")


def run(output: Path, settings: dict, checkpoint: str | None, base: str | None, source: str) -> None:
    """Fill `output`. Raises InputError where it holds a table of other settings."""
    # before anything is made in a folder that may be another's
    of = {"settings": settings, "checkpoint": checkpoint, "base": base, "data": source}
    claim(output / "invariance.json", **of, versions=versions())
    if checkpoint is None:
        make_tiny(output, settings)
        checkpoint, base = str(output / "model"), str(output / "base")
    tuned = landscape.load_checkpoint(checkpoint, dtype=settings["dtype"])
    data = landscape.load_data(
        source, tuned.tokenizer, max_length=settings["max_length"], limit=settings["limit"], seed=settings["seed"]
    )
    model = tuned.model
    given = landscape.load_checkpoint(base, dtype=settings["dtype"]) if base else None
    origin = given.model if given else nearby(model, data, settings)
    digests = {"checkpoint": tuned.digest, "base": given.digest if given else None, "data": data.digest}
    claim(output / "invariance.json", digests=digests, tokens=data.tokens)
    rows = _read(output / "invariance.csv")
    metrics = [m for m in settings["metrics"] if not (m["metric"] == "relative_flatness" and is_tied(model))]
    before = log_probabilities(model, data)
    for symmetry in (None, *symmetries_of(model)):
        name = symmetry.name if symmetry else UNCHANGED
        missing = [m for m in metrics if any((name, *key) not in rows for key in keys_of(m))]
        if not missing:
            continue
        changed, changed_origin = model, origin
        if symmetry is not None:
            # copies, so that neither rounding nor an interruption is left behind in what the next one starts from
            changed, changed_origin = copy.deepcopy(model), copy.deepcopy(origin)
            for each in (changed, changed_origin):
                symmetry.apply(each, settings["seed"], settings["strength"])
        error = function_error(before, log_probabilities(changed, data))
        print(f"{name}: log-probabilities within {error:.1e}", flush=True)
        for metric in missing:
            for row in measure(metric, changed, changed_origin, data, settings["seed"]):
                key = (row["metric"], row["options"])
                start = rows.get((UNCHANGED, *key), row)
                rows[name, *key] = compare(name, start, row, error, symmetry)
            _write(output / "invariance.csv", rows.values())


# --- one cell -----------------------------------------------------------------------------------------------


def keys_of(metric: dict) -> list[tuple[str, str]]:
    """The metric and options columns of the rows that one entry of the settings makes."""
    options = {name: value for name, value in metric.items() if name not in ("metric", "details")}
    names = [metric["metric"], *(f"{metric['metric']}: {detail}" for detail in metric.get("details", []))]
    return [(name, json.dumps(options)) for name in names]


def measure(metric: dict, model: Any, base: Any, data: Any, seed: int) -> Iterator[dict]:
    """The metric's value, and its details asked for, each as a row."""
    (name, options), *_ = keys = keys_of(metric)
    extra = {"base": base} if landscape.SHARPNESS_METRICS[name].needs_base else {}
    found = landscape.compute_sharpness(model, data, metric=name, seed=seed, **extra, **json.loads(options))
    values = [(found.value, found.stderr), *((found.details[detail], None) for detail in metric.get("details", []))]
    for (column, _), (value, stderr) in zip(keys, values, strict=True):
        yield {"metric": column, "options": options, "after": value, "stderr_after": stderr}


def compare(name: str, before: dict, after: dict, error: float, symmetry: Symmetry | None) -> dict:
    start, end = float(before["after"]), float(after["after"])
    scale = scale_drawn(after["metric"], json.loads(after["options"]))
    return after | {
        "transformation": name,
        "before": start,
        "stderr_before": before["stderr_after"],
        "ratio": end / start if start else float("nan"),
        "exact": scale is None or symmetry is None or scale in symmetry.commutes,
        "function_error": error,
    }


def scale_drawn(metric: str, options: dict) -> str | None:
    """What the metric's random perturbations are scaled by; None where it draws none, or only a start."""
    if metric == "filter_trace":
        return options.get("normalize", "unit")
    if metric == "average_case":
        return "adaptive" if options.get("adaptive") else options.get("normalize", "none")
    return SAMPLED.get(metric)


@torch.no_grad()
def log_probabilities(model: Any, data: Iterable[dict]) -> list[torch.Tensor]:
    model.eval()
    inputs = [{k: v.to(model.device) for k, v in batch.items() if k != "labels"} for batch in data]
    return [torch.log_softmax(model(**batch).logits.double(), dim=-1).cpu() for batch in inputs]


def function_error(before: list[torch.Tensor], after: list[torch.Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(before, after, strict=True))


# --- models -------------------------------------------------------------------------------------------------


def make_tiny(folder: Path, settings: dict) -> None:
    """A Llama over bytes with an untied head: folder/base, trained on prose, and folder/model, tuned on code."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    if (folder / "model").exists():
        return
    end, bytes_ = "<|end|>", ByteLevelBPETokenizer()
    bytes_.train_from_iterator([], vocab_size=257, special_tokens=[end], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_._tokenizer, eos_token=end, pad_token=end)
    shape = {name: value for name, value in settings["tiny"].items() if not name.endswith("steps")}
    config = LlamaConfig(
        **shape, vocab_size=257, tie_word_embeddings=False, max_position_embeddings=settings["max_length"],
        bos_token_id=None, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(settings["seed"])
    model = LlamaForCausalLM(config)
    for name, source, steps in (("base", "docs", "steps"), ("model", "code", "tuning_steps")):
        data = landscape.load_data(
            f"builtin:{source}@train", tokenizer,
            max_length=settings["max_length"], limit=2000, batch_tokens=1024, seed=settings["seed"],
        )  # fmt: skip
        train(model, data, settings["tiny"][steps])
        if not (folder / name).exists():
            landscape.save_checkpoint(model, tokenizer, folder / name)


def train(model: Any, data: Iterable[dict], steps: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    batches = list(data)
    for step in range(steps):
        optimizer.zero_grad()
        model(**batches[step % len(batches)]).loss.backward()
        optimizer.step()
    optimizer.zero_grad()
    model.eval()


def nearby(model: Any, data: Iterable[dict], settings: dict) -> Any:
    """A stand-in for a base that was not given: noise of a hundredth of each tensor, then a few steps down."""
    origin = copy.deepcopy(model)
    torch.manual_seed(settings["seed"])
    with torch.no_grad():
        for weight in origin.parameters():
            weight.add_(torch.randn(weight.shape).to(weight) * weight.square().mean().sqrt() / 100)
    optimizer = torch.optim.SGD(origin.parameters(), lr=0.01)
    batch = {name: value.to(origin.device) for name, value in next(iter(data)).items()}
    for _ in range(3):
        optimizer.zero_grad()
        origin(**batch).loss.backward()
        optimizer.step()
    optimizer.zero_grad()
    return origin


# --- files --------------------------------------------------------------------------------------------------


def _read(path: Path) -> dict[tuple[str, str, str], dict]:
    """Finished rows by transformation, metric and options."""
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {(row["transformation"], row["metric"], row["options"]): row for row in csv.DictReader(file)}


def _write(path: Path, rows: Iterable[dict]) -> None:
    temporary = path.with_suffix(".part")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    os.replace(temporary, path)


if __name__ == "__main__":
    main()

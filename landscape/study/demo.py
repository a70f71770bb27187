"""The whole story on built-in data: a tiny Llama learns the docs, then code with AdamW or SAM, and what it forgets."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from landscape.checkpoints import LoadOptions, save_checkpoint
from landscape.data.corpora import builtin_corpus
from landscape.data.tokens import DataOptions
from landscape.forgetting.losses import Forgetting
from landscape.objective.scope import Run
from landscape.plotting import write_figures
from landscape.results import installed_versions, results_folder, write_json
from landscape.study.comparison import Comparison, open_comparison
from landscape.study.measurements import forgetting_task, sharpness_task
from landscape.study.runner import cells_against_base, run_cells, run_tasks
from landscape.study.surfaces import compare_surfaces, summarize
from landscape.surfaces.kinds.random import RandomSurface
from landscape.surfaces.result import Surface
from landscape.training.finetuning import finetune
from landscape.training.options import Optimization, Saving

VOCABULARY = 1024
LENGTH = 128  # tokens of an example
PRETRAIN_STEPS, TUNE_STEPS = 260, 50
BATCH = 32
RHO = 0.05  # Foret et al. 2021
GRID, SPAN = 11, 1.0
EVALUATED = 20  # examples behind each point of a surface
SHARPNESS: dict[str, dict[str, Any]] = {
    "worst_case": {"steps": 1},
    "average_case": {"adaptive": True, "samples": 16},
    "gradient_norm": {},
}


def run_demo(folder: Path, *, seed: int = 0, progress: bool = True) -> list[dict]:
    """Make everything under `folder` and print what happens; what is there already is not made again.

    Args:
        folder: Gets the checkpoints, the surfaces and `demo.json`.
        seed: Seed for everything that is random.
        progress: Show progress bars.

    Returns:
        The rows of the table that it prints, one for each checkpoint.
    """
    started = time.perf_counter()
    settings = {"command": "demo", "seed": seed, "versions": installed_versions()}
    with results_folder(folder, settings):
        announce(f"1. A tiny Llama with random weights and a tokenizer trained on builtin:docs -> {folder / 'random'}")
        if not (folder / "random").exists():
            tokenizer = train_tokenizer()
            save_checkpoint(tiny_llama(len(tokenizer), seed), tokenizer, folder / "random")
        common: dict[str, Any] = {
            "seed": seed,
            "data_options": DataOptions(max_length=LENGTH),
            "load_options": LoadOptions(device="cpu"),
            "saving": Saving(save_every=50),
            "progress": progress,
        }
        announce(f"2. Pre-train it on builtin:docs, {PRETRAIN_STEPS} AdamW steps -> {folder / 'base'}")
        pretraining = Optimization(lr=3e-3, steps=PRETRAIN_STEPS, batch_size=BATCH)
        finetune(folder / "random", "builtin:docs", folder / "base", optimization=pretraining, **common)
        for optimizer, title in (("adamw", "AdamW"), ("sam", f"SAM, rho={RHO}")):
            announce(f"3. Fine-tune it on builtin:code, {TUNE_STEPS} steps of {title} -> {folder / optimizer}")
            tuning = Optimization(optimizer=optimizer, rho=RHO, lr=1e-3, steps=TUNE_STEPS, batch_size=BATCH)
            finetune(folder / "base", "builtin:code", folder / optimizer, optimization=tuning, **common)
        announce(f"4. Loss surfaces of both, on old data (docs) and new data (code) -> {folder / 'plot'}")
        surfaces = _surfaces(folder, seed, progress)
        announce("5. What each forgot of the docs, and how flat it is\n")
        _sharpness(folder, seed, progress)
        rows = _table(folder, surfaces, seed, progress)
        write_json(folder / "demo.json", rows)
    print(formatted(rows))
    print(
        "\nForgotten is the rise of the loss on held-out docs, in nats per token, with its 95% interval (low, high). "
        f"Surface\ncurvature is our reconstruction of the metric Li et al. 2024 name, on one {GRID} x {GRID} plane of "
        "random directions: one draw,\none seed, so no evidence for or against flatness yet."
    )
    print(f"\nDone in {time.perf_counter() - started:.0f} s.")
    print(f"Checkpoints: {folder / 'base'}  {folder / 'adamw'}  {folder / 'sam'}; try")
    print(f"  landscape plot {folder / 'adamw'} {folder / 'sam'} --kind interpolate --data builtin:docs")
    return rows


def announce(text: str) -> None:
    """Print what comes next."""
    print(text, flush=True)  # as it goes, also into a pipe


def train_tokenizer() -> Any:
    """A byte-level BPE tokenizer trained on the train part of the built-in docs."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    trained = ByteLevelBPETokenizer()
    _, texts = builtin_corpus("builtin:docs", "train")
    trained.train_from_iterator(texts, vocab_size=VOCABULARY, special_tokens=["<|end|>"], show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, eos_token="<|end|>", pad_token="<|end|>")


def tiny_llama(vocabulary: int, seed: int) -> Any:
    """A Llama of under 1M parameters with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def _tuned(folder: Path, seed: int) -> Comparison:
    """Both fine-tuned models, with the examples on which their flatness is measured."""
    return open_comparison(
        [str(folder / "adamw"), str(folder / "sam")],
        ["docs=builtin:docs", "code=builtin:code"],
        seed=seed,
        data_options=DataOptions(limit=EVALUATED, max_length=LENGTH),
        load_options=LoadOptions(device="cpu"),
    )


def _surfaces(folder: Path, seed: int, progress: bool) -> list[Surface]:
    comparison = _tuned(folder, seed)
    settings = {"command": "plot", **comparison.settings(), "points": GRID, "span": SPAN, "seed": seed}
    with results_folder(folder / "plot", settings):
        kind = RandomSurface(points=GRID, span=SPAN, seed=seed)
        surfaces = compare_surfaces(comparison, folder / "plot", kind, run=Run(progress=progress))
        write_figures(list(surfaces.values()), folder / "plot" / "surface")
        summaries = [summarize(name, surface) for name, surface in surfaces.items()]
        write_json(folder / "plot" / "summary.json", {"settings": settings, "surfaces": summaries})
    return list(surfaces.values())


def _sharpness(folder: Path, seed: int, progress: bool) -> None:
    """Keep three cheap sharpness metrics of both fine-tuned models, measured on the examples of the surfaces."""
    comparison = _tuned(folder, seed)
    settings = {"command": "sharpness", **comparison.settings(), "metrics": SHARPNESS, "seed": seed}
    run = Run(progress=progress)
    tasks = [sharpness_task(name, name, options, seed=seed, run=run) for name, options in SHARPNESS.items()]
    with results_folder(folder / "sharpness", settings):
        run_tasks(comparison, folder / "sharpness", tasks)


def _table(folder: Path, surfaces: list[Surface], seed: int, progress: bool) -> list[dict]:
    """Return a row per checkpoint: held-out losses on docs and code, what was forgotten, and surface curvature."""
    curvature = {(s.name, s.data): s.metrics().surface_curvature for s in surfaces}
    comparison = open_comparison(
        [str(folder / name) for name in ("base", "adamw", "sam")],
        ["docs=builtin:docs@heldout", "code=builtin:code@heldout"],
        data_options=DataOptions(limit=256, max_length=LENGTH),
        load_options=LoadOptions(device="cpu"),
    )
    settings = {"command": "forgetting", **comparison.settings(), "seed": seed}
    task = forgetting_task(seed=seed, run=Run(progress=progress))
    with results_folder(folder / "forgetting", settings):
        cells = cells_against_base(comparison, folder / "forgetting", task)
        results: list[Forgetting] = [result for _, result in run_cells(comparison, cells)]
    before = {task.name: task.loss_before for task in results[0].tasks}
    rows = [_row("base", before, 0.0, None, curvature)]
    for result in results:
        of_docs = next(task for task in result.tasks if task.name == "docs")
        after = {task.name: task.loss_after for task in result.tasks}
        rows.append(_row(result.name, after, of_docs.forgetting, of_docs.forgetting_interval, curvature))
    return rows


def _row(name: str, losses: dict, forgotten: float, interval: tuple[float, ...] | None, curvature: dict) -> dict:
    return {
        "checkpoint": name,
        "docs_loss": losses["docs"],
        "code_loss": losses["code"],
        "forgotten": forgotten,
        "low": interval and interval[0],
        "high": interval and interval[1],
        "surface_curvature_docs": curvature.get((name, "docs")),
        "surface_curvature_code": curvature.get((name, "code")),
    }


def formatted(rows: list[dict]) -> str:
    """Return rows as a table of text, with a line of headings."""
    headings = [name.replace("_", " ") for name in rows[0]]
    lines = [[str(v) if isinstance(v, str) else "-" if v is None else f"{v:.4f}" for v in r.values()] for r in rows]
    widths = [max(map(len, column)) for column in zip(headings, *lines, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:>{w}}" for cell, w in zip(line, widths, strict=True)) for line in [headings, *lines]
    )

"""The story on a real model: SmolLM2 learns word problems by AdamW and by SAM, and what each forgets for it."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

from landscape.checkpoints import LoadOptions, load_tokenizer
from landscape.data.questions import holds_questions, load_questions
from landscape.data.tokens import DataOptions
from landscape.forgetting.losses import Forgetting
from landscape.objective.scope import Run
from landscape.plotting.files import write_figure
from landscape.plotting.story import Story, story_figure
from landscape.public.bigbench import files_of
from landscape.public.fetching import fetch
from landscape.results import installed_versions, results_folder, write_json, write_text
from landscape.study.comparison import Comparison, open_comparison
from landscape.study.demo import announce, formatted
from landscape.study.measurements import forgetting_task
from landscape.study.runner import cells_against_base, run_cells
from landscape.study.surfaces import compare_surfaces
from landscape.surfaces.kind import SurfaceKind
from landscape.surfaces.kinds.line import LineSurface
from landscape.surfaces.kinds.random import RandomSurface
from landscape.surfaces.result import Surface
from landscape.training.finetuning import finetune
from landscape.training.options import Optimization

NEW = "elementary_math_qa/question_only"  # what is learned: word problems, whose answers are numbers
OLD = ("general_knowledge", "implicatures")  # what may be forgotten, beside the docs
HELD_OUT = 64  # word problems that are measured on and not trained on
STEPS, BATCH, LORA = 40, 8, 8  # some minutes on two cores
LR = 1e-3  # usual for LoRA, which trains 1% of the weights
RHO = 0.05  # Foret et al. 2021
LENGTH = 128  # tokens of an example
DRAWS, POINTS, SPAN = 3, 7, 0.1  # lines behind a profile, and points of each; filters move by a tenth of their norm
LINE_POINTS = 9  # of the line between the two
DRAWN_ON, ASKED = 8, 48  # examples behind each point of a surface, and behind what was forgotten


def run_real_demo(folder: Path, *, seed: int = 0, progress: bool = True) -> list[dict]:
    """Make everything under `folder` and print what happens; what is there already is not made again.

    Args:
        folder: Gets the adapters, the surfaces, the picture `story.png` and `demo.json`.
        seed: Seed for everything that is random.
        progress: Show progress bars.

    Returns:
        The rows of the table that it prints, one for each checkpoint and data set.

    Raises:
        InputError: The model or the questions are not in the cache, and cannot be downloaded.
    """
    started = time.perf_counter()
    settings = {"command": "demo", "real": True, "seed": seed, "versions": installed_versions()}
    with results_folder(folder, settings):
        announce("1. Fetch SmolLM2-135M-Instruct and three tasks of BIG-bench, 451 MB where they are not there yet")
        base, bigbench = fetch("smollm2"), fetch(f"bigbench:{','.join((NEW, *OLD))}")
        training, held_out = split_questions(files_of(bigbench, NEW)[1], folder / "data")
        for optimizer, title in (("adamw", "AdamW"), ("sam", f"SAM, rho={RHO}, which takes two gradients a step")):
            announce(f"2. Teach it word problems with LoRA, {STEPS} steps of {title} -> {folder / optimizer}")
            tuning = Optimization(optimizer=optimizer, rho=RHO, lr=LR, steps=STEPS, batch_size=BATCH, lora=LORA)
            finetune(
                base, training, folder / optimizer, optimization=tuning, seed=seed, progress=progress,
                data_options=DataOptions(max_length=LENGTH), load_options=LoadOptions(device="cpu"),
            )  # fmt: skip
        sources = ["docs=builtin:docs@heldout", f"word problems={held_out}"]
        tuned = [str(folder / name) for name in ("adamw", "sam")]
        drawn = _open(tuned, sources, DRAWN_ON)
        announce(f"3. The loss along {DRAWS} random lines through each -> {folder / 'plot'}")
        random = RandomSurface(dim=1, points=POINTS, span=SPAN, seed=seed)
        profiles = _surfaces(drawn, folder / "plot", random, DRAWS, progress)
        announce(f"4. The loss on the line from AdamW's end to SAM's -> {folder / 'line'}")
        line = _surfaces(drawn, folder / "line", LineSurface(points=LINE_POINTS), 1, progress)
        announce(f"5. What each forgot -> {folder / 'forgetting'}\n")
        sources += [f"{task}={files_of(bigbench, task)[0]}" for task in OLD]
        kept = _forgetting(_open([str(base), *tuned], sources, ASKED), folder / "forgetting", seed, progress)
        write_figure(story_figure(Story(profiles, line, kept)), folder / "story")
        rows = [row for result in kept for row in _rows(result)]
        write_json(folder / "demo.json", rows)
    print(formatted(rows))
    print(
        "\nForgotten is the rise of the loss from the base, in nats per token, with its 95% interval (low, high);\n"
        "where it is negative, the checkpoint has learned. One run of each optimizer at one radius: no evidence\n"
        "for or against SAM yet."
    )
    print(f"\nDone in {time.perf_counter() - started:.0f} s. The picture: {folder / 'story.png'}")
    return rows


def split_questions(source: Path, folder: Path) -> tuple[Path, Path]:
    """Write the chats of a task as a file to train on and one that is held out, which has the first `HELD_OUT`."""
    lines = source.read_text(encoding="utf-8").splitlines(keepends=True)
    training, held_out = folder / "word-problems.jsonl", folder / "word-problems-heldout.jsonl"
    for path, part in ((training, lines[HELD_OUT:]), (held_out, lines[:HELD_OUT])):
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, "".join(part))
    return training, held_out


def _open(checkpoints: list[str], sources: list[str], limit: int) -> Comparison:
    """Open checkpoints with data, of which questions are scored by their choices in the chat template."""
    comparison = open_comparison(
        checkpoints,
        sources,
        data_options=DataOptions(limit=limit, max_length=LENGTH, batch_tokens=1024),
        load_options=LoadOptions(device="cpu"),
    )
    tokenizer = load_tokenizer(comparison.files[0])
    questions = {
        name: load_questions(data.source, tokenizer, max_length=LENGTH, limit=limit, batch_tokens=1024)
        for name, data in comparison.data.items()
        if holds_questions(data.source)
    }
    return dataclasses.replace(comparison, data={**comparison.data, **questions})


def _surfaces(comparison: Comparison, folder: Path, kind: SurfaceKind, draws: int, progress: bool) -> list[Surface]:
    settings = {"command": "plot", **comparison.settings(), **kind.folder_settings(), "draws": draws}
    with results_folder(folder, settings):
        return list(compare_surfaces(comparison, folder, kind, draws=draws, run=Run(progress=progress)).values())


def _forgetting(comparison: Comparison, folder: Path, seed: int, progress: bool) -> list[Forgetting]:
    task = forgetting_task(seed=seed, run=Run(progress=progress))
    cells = cells_against_base(comparison, folder, task)
    with results_folder(folder, {"command": "forgetting", **comparison.settings(), "seed": seed}):
        finished = dict(run_cells(comparison, cells))
    return [finished[cell] for cell in cells]


def _rows(result: Forgetting) -> list[dict[str, Any]]:
    """Return a row for each data set, with the accuracy of the answers where there are choices."""
    answered = {answers.name: answers.plain for answers in result.choices}
    rows = []
    for task in result.tasks:
        (low, high), answers = task.forgetting_interval, answered.get(task.name)
        rows.append(
            {
                "checkpoint": result.name, "data": task.name,
                "loss_before": task.loss_before, "loss_after": task.loss_after,
                "forgotten": task.forgetting, "low": low, "high": high,
                "accuracy_before": answers and answers.accuracy_before,
                "accuracy_after": answers and answers.accuracy_after,
            }
        )  # fmt: skip
    return rows

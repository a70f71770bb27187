"""`landscape instruction-vectors`: the heads and vectors of in-context tasks, and what tuning changed of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from landscape.cli.checks import check_inputs
from landscape.cli.options.checkpoints import Checkpoints
from landscape.cli.options.data import BatchTokens, Seed
from landscape.cli.options.instruction_vectors import ComparedBase, Heads, InContextTasks, Layer, Prompts, Shots
from landscape.cli.options.measurement import BootstrapResamples
from landscape.cli.options.model import Device, Dtype, Trust
from landscape.cli.options.output import Json, OutputFolder, Quiet, Style
from landscape.cli.tables import (
    open_console,
    print_data,
    print_json,
    print_note,
    print_table,
    print_written,
    quiet_libraries,
    with_interval,
)

if TYPE_CHECKING:
    from landscape.instruction_vectors.changed import InstructionVectorChange
    from landscape.instruction_vectors.result import Estimate, InstructionVector


def instruction_vectors(
    checkpoints: Checkpoints,
    seed: Seed = 0,
    tasks: InContextTasks = None,
    batch_tokens: BatchTokens = 4096,
    base: ComparedBase = None,
    shots: Shots = 10,
    prompts: Prompts = 32,
    heads: Heads = 10,
    layer: Layer = None,
    resamples: BootstrapResamples = 9999,
    dtype: Dtype = "float32",
    device: Device = "auto",
    trust_remote_code: Trust = False,
    output: OutputFolder = Path("landscape-instruction-vectors"),
    style: Style = "paper",
    json_output: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find the attention heads that do in-context tasks, and with a base what tuning changed of them.

    For each task the command measures the indirect effect of every head, chooses the strongest, and sums what they
    write into an instruction vector. With --base it compares the vectors with those of the base, and adds the base's
    vectors to each checkpoint to see whether lost answers come back.

        landscape instruction-vectors runs/adamw runs/sam --base base --tasks tasks.jsonl
    """
    from landscape.instruction_vectors.tasks import BUILTIN, check_tasks_source

    sources = tasks or [BUILTIN]
    for source in sources:
        check_tasks_source(source)
    check_inputs([*checkpoints, base], None, output)
    quiet_libraries()
    import dataclasses

    from landscape.checkpoints import LoadOptions
    from landscape.instruction_vectors.prompts import VectorOptions
    from landscape.instruction_vectors.vector import Statistics
    from landscape.plotting.instruction_vectors.figures import write_instruction_vector_figures
    from landscape.results import results_folder, write_json
    from landscape.study.instruction_vectors import change_task, load_all_tasks, open_task_comparison, vector_task
    from landscape.study.runner import cells_against_base, cells_of_each, run_cells

    options = VectorOptions(shots, prompts, heads, layer)
    statistics = Statistics(0.95, resamples, seed)
    loaded = load_all_tasks(sources)
    named = [*([base] if base else []), *checkpoints]
    comparison = open_task_comparison(named, loaded, LoadOptions(dtype, device, trust_remote_code=trust_remote_code))
    print_data(task.describe() for task in loaded.values())
    origin = comparison.files[0].digest if base else None
    shared = {"batch_tokens": batch_tokens, "progress": not quiet}
    each = vector_task(options, statistics, able=lambda c: origin in (None, c.digest), **shared)  # type: ignore[arg-type]
    change = change_task(options, statistics, **shared)  # type: ignore[arg-type]
    settings = {
        "command": "instruction-vectors",
        **comparison.settings(),
        **dataclasses.asdict(options),
        "resamples": resamples,
        "seed": seed,
        "base": origin,
    }
    cells = cells_of_each(comparison, output, each)
    against = cells_against_base(comparison, output, change) if base else []
    files = ["summary.json", *(cell.path.name for cell in [*cells, *against])]
    with results_folder(output, settings, files):
        found = dict(run_cells(comparison, cells))
        vectors: list[InstructionVector] = [found[cell] for cell in cells]
        changed = dict(run_cells(comparison, against))
        changes: list[InstructionVectorChange] = [changed[cell] for cell in against]
        figures = write_instruction_vector_figures(vectors, output / "heads", style=style)
        summary = {
            "settings": settings,
            "vectors": [_without_arrays(vector) for vector in vectors],
            "changes": [one.to_dict() for one in changes],
        }
        write_json(output / "summary.json", summary)
    if json_output:
        print_json(summary)
    else:
        _print_vectors(vectors)
        if changes:
            _print_changes(changes)
    print_written(output / "summary.json", *figures)


def _without_arrays(vector: InstructionVector) -> dict:
    """Return a result without its long arrays, which its own file has."""
    return {key: value for key, value in vector.to_dict().items() if key not in ("vector", "effects")}


def _print_vectors(vectors: list[InstructionVector]) -> None:
    console = open_console()
    rows = [
        [
            vector.name,
            vector.task,
            _in_percent(vector.few_shot),
            _in_percent(vector.zero_shot),
            _in_percent(vector.steered),
            _in_numbers(vector.joint_effect),
            _in_numbers(vector.random_effect),
            ", ".join(f"{layer}.{head}" for layer, head in vector.heads[:5]),
        ]
        for vector in vectors
    ]
    headings = ("checkpoint", "task", "few-shot", "zero-shot", "with vector", "effect of heads", "of others", "heads")
    print_table(console, headings, rows, left=("task", "heads"))
    first = vectors[0]
    print_note(
        console,
        "few-shot, zero-shot: share of right answers with and without examples, and without examples but with the "
        f"vector added to layer {first.layer}; effect: rise of the probability of the right answer after shuffled "
        f"examples when the {len(first.heads)} heads, or as many random others, put out what they do after right "
        f"examples; heads: the first five as layer.head; {first.confidence:.0%} intervals over prompts.",
    )


def _print_changes(changes: list[InstructionVectorChange]) -> None:
    console = open_console()
    rows = []
    for change in changes:
        for task in change.tasks:
            recovered = {r.vector: r for r in task.recoveries if r.prompts == "few-shot"}
            other, beyond = recovered.get("other task"), recovered["base"].over_random
            rows.append(
                [
                    change.name,
                    task.task,
                    _in_numbers(task.cosine, ".3f"),
                    f"{task.overlap.value:.0%}\n({task.overlap_again:.0%}, {task.overlap_random:.0%})",
                    _in_numbers(task.effect_lost, "+.3f"),
                    _in_percent(task.few_shot.lost, "+"),
                    _in_percent(task.zero_shot.lost, "+"),
                    _in_percent(recovered["base"].gained, "+"),
                    _in_percent(beyond, "+") if beyond else "",
                    _in_percent(other.gained, "+") if other else "",
                ]
            )
    headings = ("checkpoint", "task", "cosine", "heads kept", "effect lost", "few-shot lost", "zero-shot lost")
    console.print()
    gains = ("base's vector", "beyond random", "other task's")
    print_table(console, [*headings, *gains], rows, left=("task",))
    print_note(
        console,
        f"Against {changes[0].base}, on the same prompts. Heads kept: share of the base's heads that are the "
        "checkpoint's too (in brackets: for other prompts in the base, and at random). Lost: positive where tuning "
        "made it worse. The last columns: few-shot accuracy gained when that vector is added to the checkpoint; beyond "
        "random: by how much the base's vector does better there than random vectors as long.",
    )


def _in_percent(share: Estimate, sign: str = "") -> str:
    return with_interval(*(f"{value:{sign}.0%}" for value in (share.value, share.low, share.high)))


def _in_numbers(estimate: Estimate, kind: str = "+.3f") -> str:
    return with_interval(*(f"{value:{kind}}" for value in (estimate.value, estimate.low, estimate.high)))

"""`landscape forgetting`: what tuned checkpoints lost against their base."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.cli.checks import check_inputs, check_tasks
from landscape.cli.options.checkpoints import Base, TunedCheckpoints
from landscape.cli.options.data import BatchTokens, Data, Limit, ListChoices, MaxLength, PromptFormat, Seed
from landscape.cli.options.measurement import BootstrapResamples, Tasks
from landscape.cli.options.model import Device, Dtype, Trust
from landscape.cli.options.output import Json, OutputFolder, Quiet
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
    from rich.console import Console

    from landscape.forgetting.losses import Forgetting


def forgetting(
    base: Base,
    checkpoints: TunedCheckpoints,
    seed: Seed = 0,
    data: Data = None,
    limit: Limit = None,
    max_length: MaxLength = 512,
    batch_tokens: BatchTokens = 4096,
    prompt_format: PromptFormat = "auto",
    list_choices: ListChoices = False,
    tasks: Tasks = None,
    resamples: BootstrapResamples = 9999,
    dtype: Dtype = "float32",
    device: Device = "auto",
    trust_remote_code: Trust = False,
    output: OutputFolder = Path("landscape-forgetting"),
    json_output: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare tuned checkpoints with their base: loss, accuracy and KL divergence on each data set, with intervals.

    If the records of a data set have choices and an answer, or an instruction, they are treated as questions: the
    command then also counts right answers, and tells apart what is lost with the instruction's format and without it.

        landscape forgetting base runs/sam --data old=alpaca.jsonl
        landscape forgetting base runs/sam --data quiz=questions.jsonl
        landscape forgetting base runs/sam --tasks hellaswag --limit 200
    """
    specs = check_tasks(tasks)
    check_inputs([base, *checkpoints], data, output)
    quiet_libraries()
    import dataclasses

    from landscape.checkpoints import Checkpoint, LoadOptions, load_tokenizer
    from landscape.data.questions import holds_questions, load_questions
    from landscape.data.tokens import DataOptions
    from landscape.forgetting.harness import compare_benchmarks, find_tasks, run_benchmarks
    from landscape.objective.scope import Run
    from landscape.results import results_folder, write_json
    from landscape.study.comparison import open_comparison
    from landscape.study.measurements import forgetting_task
    from landscape.study.runner import cells_against_base, run_cells

    comparison = open_comparison(
        [base, *checkpoints],
        data or (),
        seed=seed,
        data_options=DataOptions(max_length, limit, batch_tokens),
        load_options=LoadOptions(dtype, device, trust_remote_code=trust_remote_code),
    )
    tokenizer = load_tokenizer(comparison.files[0], trust_remote_code=trust_remote_code)
    length = min([max_length, *(file.max_positions for file in comparison.files if file.max_positions)])
    questions = {
        name: load_questions(
            tokens.source,
            tokenizer,
            max_length=length,
            limit=limit,
            batch_tokens=batch_tokens,
            seed=seed,
            prompt_format=prompt_format,
            list_choices=list_choices,
        )
        for name, tokens in comparison.data.items()
        if holds_questions(tokens.source)
    }
    comparison = dataclasses.replace(comparison, data={**comparison.data, **questions})
    print_data(tokens.describe() for tokens in comparison.data.values())
    benchmarks: dict[str, Any] = {"limit": limit, "batch_size": max(1, batch_tokens // length), "progress": not quiet}
    settings = {"command": "forgetting", **comparison.settings(), "resamples": resamples, "seed": seed}
    if specs:
        settings |= {"tasks": find_tasks(specs), "limit": limit}
    scores_of_base: list[Any] = []  # measured once, where they are needed

    def compare_scores(origin: Checkpoint, tuned: Checkpoint) -> Any:
        """Run the benchmarks on both checkpoints."""
        if not scores_of_base:
            scores_of_base.append(run_benchmarks(origin.model, tokenizer, specs, **benchmarks))
        return compare_benchmarks(scores_of_base[0], run_benchmarks(tuned.model, tokenizer, specs, **benchmarks))

    run = Run(progress=not quiet)
    task = forgetting_task(resamples=resamples, seed=seed, run=run, benchmarks=compare_scores if specs else None)
    cells = cells_against_base(comparison, output, task)
    with results_folder(output, settings, ["summary.json", *(cell.path.name for cell in cells)]):
        finished = dict(run_cells(comparison, cells))
        results = [finished[cell] for cell in cells]
        summary = {"settings": settings, "checkpoints": [result.to_dict() for result in results]}
        write_json(output / "summary.json", summary)
    if json_output:
        print_json(summary)
    else:
        _print_forgetting(results)
    print_written(output / "summary.json")


def _print_forgetting(results: list[Forgetting]) -> None:
    console = open_console()
    headings = ("checkpoint", "data", "loss before", "after", "forgetting", "accuracy before", "after", "lost")
    rows = [
        [
            result.name,
            task.name,
            f"{task.loss_before:.4f}",
            f"{task.loss_after:.4f}",
            _in_nats(task.forgetting, task.forgetting_interval),
            f"{task.accuracy_before:.2%}",
            f"{task.accuracy_after:.2%}",
            _in_percent(task.accuracy_loss, task.accuracy_interval),
            with_interval(f"{task.kl:.4f}", *(f"{end:.4f}" for end in task.kl_interval)),
            f"{task.tokens}",
        ]
        for result in results
        for task in result.tasks
    ]
    print_table(console, [*headings, "KL to base", "tokens"], rows, left=("data",))
    print_note(
        console,
        f"forgetting: rise of the loss from {results[0].base}, nats per token; KL(base || tuned) in the same; "
        f"{results[0].confidence:.0%} intervals of a paired bootstrap over examples.",
    )
    if any(result.choices for result in results):
        _print_answers(console, results)
    if any(result.benchmarks for result in results):
        _print_benchmarks(console, results)


def _print_answers(console: Console, results: list[Forgetting]) -> None:
    rows = []
    for result in results:
        for task in result.choices:
            for asked, answers in (("plainly", task.plain), ("instructed", task.instructed)):
                if answers is None:
                    continue
                is_known = not math.isnan(answers.norm_before)
                rows.append(
                    [
                        result.name,
                        f"{task.name} ({task.questions})",
                        asked,
                        f"{answers.accuracy_before:.2%}",
                        f"{answers.accuracy_after:.2%}",
                        _in_percent(answers.accuracy_loss, answers.accuracy_interval),
                        f"{answers.p_value:.2g}",
                        f"{answers.norm_before:.2%}" if is_known else "",
                        f"{answers.norm_after:.2%}" if is_known else "",
                        _in_percent(answers.norm_loss, answers.norm_interval) if is_known else "",
                        _in_nats(answers.forgetting, answers.forgetting_interval),
                        "" if math.isnan(task.chance) else f"{task.chance:.2%}",
                    ]
                )
            if task.instructed is not None:
                by_format = _in_percent(task.format_accuracy_loss, task.format_accuracy_interval)
                rise = _in_nats(task.format_forgetting, task.format_forgetting_interval)
                rows.append(["", "", "difference", "", "", by_format, "", "", "", "", rise, ""])
    headings = ("checkpoint", "questions", "asked", "accuracy before", "after", "lost", "p")
    by_length = ("per character before", "after", "lost", "answer's loss rose", "guessing")
    console.print()
    print_table(console, [*headings, *by_length], rows, left=("questions", "asked"))
    print_note(
        console,
        "answers: the choice with the highest log-probability, and the highest per character; p: as many right answers "
        "turned wrong as wrong ones right (McNemar, exact); losses in nats per answer; asked plainly is knowledge, the "
        "difference is what is lost to the instruction's format alone; intervals over questions.",
    )


def _print_benchmarks(console: Console, results: list[Forgetting]) -> None:
    rows = [
        [
            result.name,
            b.task,
            b.metric,
            f"{b.before:.4f} ± {b.before_stderr:.4f}",
            f"{b.after:.4f} ± {b.after_stderr:.4f}",
            f"{b.fall:+.4f} ± {b.fall_stderr:.4f}{'' if b.paired else ' *'}",
            f"{b.count}",
        ]
        for result in results
        for b in result.benchmarks
    ]
    console.print()
    headings = ("checkpoint", "task", "metric", "before", "after", "lost", "samples")
    print_table(console, headings, rows, left=("task", "metric"))
    words = "lm-evaluation-harness, ± standard errors; lost: positive where tuning made it worse, paired over samples"
    if any(not b.paired for result in results for b in result.benchmarks):
        words += "; * no samples: as if the two runs were independent, which is mostly too wide"
    print_note(console, f"{words}.")


def _in_nats(value: float, interval: Sequence[float]) -> str:
    return with_interval(f"{value:+.4f}", *(f"{end:+.4f}" for end in interval))


def _in_percent(value: float, interval: Sequence[float]) -> str:
    return with_interval(f"{value:+.2%}", *(f"{end:+.2%}" for end in interval))

"""`landscape forgetting`: what tuned checkpoints lost against their base."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.cli.checks import check_inputs, check_tasks
from landscape.cli.options.checkpoints import Base, TunedCheckpoints
from landscape.cli.options.data import BatchTokens, Data, Limit, ListChoices, MaxLength, PromptFormat, Seed
from landscape.cli.options.measurement import BootstrapResamples, OwnSamples, Tasks
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
    own_samples: OwnSamples = False,
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
        landscape forgetting base runs/sam --data new=tasks.jsonl --own-samples
        landscape forgetting base runs/sam --data quiz=questions.jsonl
        landscape forgetting base runs/sam --tasks hellaswag --limit 200
    """
    specs = check_tasks(tasks)
    check_inputs([base, *checkpoints], data, output)
    quiet_libraries()

    from landscape.checkpoints import Checkpoint, LoadOptions, load_tokenizer
    from landscape.data.questions import Questions
    from landscape.data.tokens import DataOptions
    from landscape.forgetting.harness import compare_benchmarks, find_tasks, run_benchmarks
    from landscape.objective.scope import Run
    from landscape.results import results_folder, write_csv, write_json
    from landscape.study.comparison import open_comparison, with_own_samples, with_questions
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
    comparison = with_questions(comparison, prompt_format=prompt_format, list_choices=list_choices)
    if own_samples:
        comparison = with_own_samples(comparison, seed=seed)
    questions = [tokens for tokens in comparison.data.values() if isinstance(tokens, Questions)]
    print_data(tokens.describe() for tokens in comparison.data.values())
    batch_size = max(1, batch_tokens // comparison.data_options.max_length)
    benchmarks: dict[str, Any] = {"limit": limit, "batch_size": batch_size, "progress": not quiet}
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
    files = ["forgetting.csv", *["answers.csv"] * bool(questions), *["benchmarks.csv"] * bool(specs), "summary.json"]
    with results_folder(output, settings, [*files, *(cell.path.name for cell in cells)]):
        finished = dict(run_cells(comparison, cells))
        results = [finished[cell] for cell in cells]
        summary = {"settings": settings, "checkpoints": [result.to_dict() for result in results]}
        for name, rows in _rows(results).items():
            write_csv(output / name, rows)
        write_json(output / "summary.json", summary)
    if json_output:
        print_json(summary)
    else:
        _print_forgetting(results)
    print_written(*(output / name for name in files))


# --- files --------------------------------------------------------------------------------------------------


def _rows(results: list[Forgetting]) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of each CSV file, with all that is known: a row for each checkpoint and task."""
    import dataclasses

    losses, answers, benchmarks = [], [], []
    for result in results:
        losses += [_flat({"checkpoint": result.name}, dataclasses.asdict(task)) for task in result.tasks]
        benchmarks += [_flat({"checkpoint": result.name}, dataclasses.asdict(b)) for b in result.benchmarks]
        for task in result.choices:
            about = {"checkpoint": result.name, "name": task.name, "questions": task.questions, "chance": task.chance}
            about |= {"prompt_format": task.prompt_format, "lists_choices": task.lists_choices}
            for asked, found in (("plainly", task.plain), ("instructed", task.instructed)):
                if found is not None:
                    answers.append(_flat({**about, "asked": asked}, dataclasses.asdict(found)))
            if task.instructed is not None:
                by_format = {
                    "accuracy_loss": task.format_accuracy_loss,
                    "accuracy_interval": task.format_accuracy_interval,
                    "forgetting": task.format_forgetting,
                    "forgetting_interval": task.format_forgetting_interval,
                }
                answers.append(_flat({**about, "asked": "difference"}, by_format))
    files = {"forgetting.csv": losses, "answers.csv": answers, "benchmarks.csv": benchmarks}
    return {name: rows for name, rows in files.items() if rows}


def _flat(about: dict[str, Any], numbers: dict[str, Any]) -> dict[str, Any]:
    """Return one row, with a column for each end of an interval."""
    row = dict(about)
    for name, value in numbers.items():
        if isinstance(value, tuple):
            row |= {f"{name}_low": value[0], f"{name}_high": value[1]}
        else:
            row[name] = value
    return row


# --- printing -----------------------------------------------------------------------------------------------


def _print_forgetting(results: list[Forgetting]) -> None:
    console = open_console()
    headings = ("checkpoint", "data", "before", "after", "forgetting", "KL to base")
    accuracies = ("accuracy lost", "accuracy before", "accuracy after", "tokens")
    rows = [
        [
            result.name,
            task.name,
            f"{task.loss_before:.4f}",
            f"{task.loss_after:.4f}",
            _in_nats(task.forgetting, task.forgetting_interval),
            f"{task.kl:.4f}",
            _in_percent(task.accuracy_loss, task.accuracy_interval),
            f"{task.accuracy_before:.1%}",
            f"{task.accuracy_after:.1%}",
            f"{task.tokens}",
        ]
        for result in results
        for task in result.tasks
    ]
    spare = ("tokens", "accuracy after", "accuracy before", "accuracy lost")
    print_table(console, [*headings, *accuracies], rows, left=("data",), spare=spare, file="forgetting.csv")
    print_note(
        console,
        f"before and after: loss of {results[0].base} and of the checkpoint; forgetting: its rise; KL(base || tuned); "
        f"all in nats per token; {results[0].confidence:.0%} intervals of a paired bootstrap over examples.",
    )
    if any(result.choices for result in results):
        _print_answers(console, results)
    if any(result.benchmarks for result in results):
        _print_benchmarks(console, results)


def _print_answers(console: Console, results: list[Forgetting]) -> None:
    rows = []
    for result in results:
        for task in result.choices:
            about = [result.name, f"{task.name} ({task.questions})"]
            guessing = "" if math.isnan(task.chance) else f"{task.chance:.1%}"
            for asked, answers in (("plainly", task.plain), ("instructed", task.instructed)):
                if answers is None:
                    continue
                is_known = not math.isnan(answers.norm_before)
                rows.append(
                    [
                        *about,
                        asked,
                        f"{answers.accuracy_before:.1%}",
                        f"{answers.accuracy_after:.1%}",
                        _in_percent(answers.accuracy_loss, answers.accuracy_interval),
                        f"{answers.p_value:.2g}",
                        guessing,
                        _in_nats(answers.forgetting, answers.forgetting_interval),
                        f"{answers.norm_before:.1%}" if is_known else "",
                        f"{answers.norm_after:.1%}" if is_known else "",
                        _in_percent(answers.norm_loss, answers.norm_interval) if is_known else "",
                    ]
                )
            if task.instructed is not None:
                by_format = _in_percent(task.format_accuracy_loss, task.format_accuracy_interval)
                rise = _in_nats(task.format_forgetting, task.format_forgetting_interval)
                rows.append([*about, "difference", "", "", by_format, "", "", rise, "", "", ""])
    headings = ["checkpoint", "questions", "asked", "before", "after", "lost", "p", "guessing", "answer's loss rose"]
    by_length = ["before per character", "after per character", "lost per character"]
    headings += by_length
    if all(row[2] == "plainly" for row in rows):
        headings.remove("asked")
        rows = [[*row[:2], *row[3:]] for row in rows]
    spare = (*by_length, "guessing", "answer's loss rose")
    console.print()
    print_table(console, headings, rows, left=("questions", "asked"), spare=spare, file="answers.csv")
    print_note(
        console,
        "before, after, lost: share of right answers, which are the choice with the highest log-probability, or the "
        "highest per character; p: as many right answers turned wrong as wrong ones right (McNemar, exact); losses in "
        "nats per answer; asked plainly is knowledge, the difference is what is lost to the instruction's format "
        "alone; intervals over questions.",
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
    spare = ("samples", "after", "before")
    print_table(console, headings, rows, left=("task", "metric"), spare=spare, file="benchmarks.csv")
    words = "lm-evaluation-harness, ± standard errors; lost: positive where tuning made it worse, paired over samples"
    if any(not b.paired for result in results for b in result.benchmarks):
        words += "; * no samples: as if the two runs were independent, which is mostly too wide"
    print_note(console, f"{words}.")


def _in_nats(value: float, interval: Sequence[float]) -> str:
    return f"{value:+.4f} [{interval[0]:+.4f}, {interval[1]:+.4f}]"


def _in_percent(value: float, interval: Sequence[float]) -> str:
    return f"{value:+.1%} [{interval[0]:+.1%}, {interval[1]:+.1%}]"

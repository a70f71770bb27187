"""`landscape forgetting`: what tuned checkpoints lost against their base."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from landscape.cli.common import (
    Adapter,
    BatchTokens,
    Data,
    Device,
    Dtype,
    DtypeOption,
    Json,
    Limit,
    MaxLength,
    Quiet,
    Seed,
    Trust,
    app,
    quiet_libraries,
    table_console,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from landscape.forgetting.losses import Forgetting


@app.command()
def forgetting(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The checkpoint that the others were tuned from.")],
    checkpoints: Annotated[
        list[str], typer.Argument(metavar="CKPT...", help="Tuned checkpoint or adapter folders, or hub ids.")
    ],
    data: Data = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            help="Benchmarks of lm-evaluation-harness, with commas between: names, or paths of task YAML files. "
            "--limit takes the first documents."
        ),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")] = Path(
        "landscape-forgetting"
    ),
    resamples: Annotated[int, typer.Option(help="Of the bootstrap over examples.", min=99)] = 9999,
    limit: Limit = None,
    max_length: MaxLength = 512,
    batch_tokens: BatchTokens = 4096,
    dtype: DtypeOption = Dtype.float32,
    device: Device = "auto",
    seed: Seed = 0,
    json_output: Json = False,
    quiet: Quiet = False,
    trust_remote_code: Trust = False,
) -> None:
    """Loss, accuracy and KL before and after tuning, on each data set, with intervals over examples.

    Data whose records have choices and an answer, or an instruction, are questions: also which choice is the likelier,
    and what is lost with the instruction's format and without.
    """
    quiet_libraries()
    import dataclasses

    from landscape.checkpoints import load_tokenizer, resolve_device
    from landscape.data.questions import holds_questions, load_questions
    from landscape.forgetting.harness import compare_benchmarks, find_tasks, run_benchmarks
    from landscape.forgetting.losses import Forgetting, measure_forgetting
    from landscape.results import results_folder, write_json
    from landscape.study.comparison import open_comparison

    comparison = open_comparison(
        [base, *checkpoints],
        data or (),
        limit=limit,
        max_length=max_length,
        batch_tokens=batch_tokens,
        seed=seed,
        dtype=dtype.value,
        device=str(resolve_device(device)),
        adapter=Adapter.merge.value,
        trust_remote_code=trust_remote_code,
    )
    tokenizer = load_tokenizer(comparison.files[0], trust_remote_code=trust_remote_code)
    length = min([max_length, *(file.max_positions for file in comparison.files if file.max_positions)])
    questions = {
        name: load_questions(
            found.source, tokenizer, max_length=length, limit=limit, batch_tokens=batch_tokens, seed=seed
        )
        for name, found in comparison.data.items()
        if holds_questions(found.source)
    }
    comparison = dataclasses.replace(comparison, data={**comparison.data, **questions})
    for described in comparison.data.values():
        print(described.describe(), file=sys.stderr)
    specs = [spec.strip() for spec in (tasks or "").split(",") if spec.strip()]
    benchmarks: dict[str, Any] = {"limit": limit, "batch_size": max(1, batch_tokens // length), "progress": not quiet}
    settings = {"command": "forgetting", **comparison.settings(), "resamples": resamples, "seed": seed}
    if specs:
        settings |= {"tasks": find_tasks(specs), "limit": limit}
    one_set = dataclasses.replace(comparison, data={"": next(iter(comparison.data.values()))})
    names = {
        index: one_set.file_names("forgetting", of_all=False)[index, ""] for index in range(1, len(comparison.names))
    }
    with results_folder(output, settings, ["summary.json", *names.values()]):
        missing = [index for index, name in names.items() if not (output / name).exists()]
        if missing:
            origin = comparison.load(0)
            scores = run_benchmarks(origin.model, tokenizer, specs, **benchmarks) if specs else ()
        for index in missing:
            tuned = comparison.load(index)
            tuned_scores = run_benchmarks(tuned.model, tokenizer, specs, **benchmarks) if specs else ()
            found = measure_forgetting(
                origin,
                tuned,
                comparison.data,
                resamples=resamples,
                seed=seed,
                progress=not quiet,
                benchmarks=compare_benchmarks(scores, tuned_scores),
            )
            found.save(output / names[index])
        results = [Forgetting.load(output / name) for name in names.values()]
        write_json(output / "summary.json", {"settings": settings, "checkpoints": [r.to_dict() for r in results]})
    if json_output:
        print((output / "summary.json").read_text(encoding="utf-8"), end="")
    else:
        _print(results)
    print(f"wrote {output / 'summary.json'}", file=sys.stderr)


def _print(results: list[Forgetting]) -> None:
    console = table_console()
    table = _table(
        "data", "loss before", "after", "forgetting", "accuracy before", "after", "lost", "KL to base", "tokens"
    )
    for result in results:
        for task in result.tasks:
            table.add_row(
                escape(result.name),
                escape(task.name),
                f"{task.loss_before:.4f}",
                f"{task.loss_after:.4f}",
                _nats(task.forgetting, task.forgetting_interval),
                f"{task.accuracy_before:.2%}",
                f"{task.accuracy_after:.2%}",
                _share(task.accuracy_loss, task.accuracy_interval),
                "{:.4f}\n[{:.4f}, {:.4f}]".format(task.kl, *task.kl_interval),
                f"{task.tokens}",
            )
    console.print(table)
    console.print(
        f"forgetting: rise of the loss from {escape(results[0].base)}, nats per token; KL(base || tuned) in the same; "
        f"{results[0].confidence:.0%} intervals of a paired bootstrap over examples.",
        highlight=False,
        soft_wrap=True,
    )
    if any(result.choices for result in results):
        _print_answers(console, results)
    if any(result.benchmarks for result in results):
        _print_benchmarks(console, results)


def _print_answers(console: Console, results: list[Forgetting]) -> None:
    headings = ("accuracy before", "after", "lost", "p", "per character before", "after", "lost", "answer's loss rose")
    table = _table("questions", "asked", *headings, "guessing", left=2)
    for result in results:
        for asked in result.choices:
            for how, a in (("plainly", asked.plain), ("instructed", asked.instructed)):
                if a is None:
                    continue
                known = not math.isnan(a.norm_before)
                table.add_row(
                    escape(result.name),
                    f"{escape(asked.name)} ({asked.questions})",
                    how,
                    f"{a.accuracy_before:.2%}",
                    f"{a.accuracy_after:.2%}",
                    _share(a.accuracy_loss, a.accuracy_interval),
                    f"{a.p_value:.2g}",
                    f"{a.norm_before:.2%}" if known else "",
                    f"{a.norm_after:.2%}" if known else "",
                    _share(a.norm_loss, a.norm_interval) if known else "",
                    _nats(a.forgetting, a.forgetting_interval),
                    "" if math.isnan(asked.chance) else f"{asked.chance:.2%}",
                )
            if asked.instructed is not None:
                by_format = _share(asked.format_accuracy_loss, asked.format_accuracy_interval)
                rise = _nats(asked.format_forgetting, asked.format_forgetting_interval)
                table.add_row("", "", "difference", "", "", by_format, "", "", "", "", rise, "")
    console.print()
    console.print(table)
    console.print(
        "answers: the choice with the highest log-probability, and the highest per character; p: as many right answers "
        "turned wrong as wrong ones right (McNemar, exact); losses in nats per answer; asked plainly is knowledge, the "
        "difference is what is lost to the instruction's format alone; intervals over questions.",
        highlight=False,
        soft_wrap=True,
    )


def _print_benchmarks(console: Console, results: list[Forgetting]) -> None:
    table = _table("task", "metric", "before", "after", "lost", "samples", left=2)
    for result in results:
        for b in result.benchmarks:
            table.add_row(
                escape(result.name),
                escape(b.task),
                escape(b.metric),
                f"{b.before:.4f} ± {b.before_stderr:.4f}",
                f"{b.after:.4f} ± {b.after_stderr:.4f}",
                f"{b.fall:+.4f} ± {b.fall_stderr:.4f}{'' if b.paired else ' *'}",
                f"{b.count}",
            )
    console.print()
    console.print(table)
    words = "lm-evaluation-harness, ± standard errors; lost: positive where tuning made it worse, paired over samples"
    if any(not b.paired for result in results for b in result.benchmarks):
        words += "; * no samples: as if the two runs were independent, which is mostly too wide"
    console.print(f"{words}.", highlight=False, soft_wrap=True)


def _table(*headings: str, left: int = 1) -> Table:
    from rich.table import Table

    table = Table(show_edge=False, pad_edge=False)
    table.add_column("checkpoint", overflow="fold")
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index < left else "right")
    return table


def _nats(value: float, interval: Sequence[float]) -> str:
    return "{:+.4f}\n[{:+.4f}, {:+.4f}]".format(value, *interval)


def _share(value: float, interval: Sequence[float]) -> str:
    return "{:+.2%}\n[{:+.2%}, {:+.2%}]".format(value, *interval)

"""`landscape forgetting`: what tuned checkpoints lost against their base."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
)

if TYPE_CHECKING:
    from landscape.forgetting import Forgetting


@app.command()
def forgetting(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The checkpoint that the others were tuned from.")],
    checkpoints: Annotated[
        list[str], typer.Argument(metavar="CKPT...", help="Tuned checkpoint or adapter folders, or hub ids.")
    ],
    data: Data = None,
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
    """Loss, accuracy and KL before and after tuning, on each data set, with intervals over examples."""
    quiet_libraries()
    import dataclasses

    from landscape.checkpoints import resolve_device
    from landscape.comparison import open_comparison
    from landscape.forgetting import Forgetting, measure_forgetting
    from landscape.results import results_folder, write_json

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
    for described in comparison.data.values():
        print(described.describe(), file=sys.stderr)
    settings = {"command": "forgetting", **comparison.settings(), "resamples": resamples, "seed": seed}
    one_set = dataclasses.replace(comparison, data={"": next(iter(comparison.data.values()))})
    names = {
        index: one_set.file_names("forgetting", of_all=False)[index, ""] for index in range(1, len(comparison.names))
    }
    with results_folder(output, settings, ["summary.json", *names.values()]):
        missing = [index for index, name in names.items() if not (output / name).exists()]
        origin = comparison.load(0) if missing else None
        for index in missing:
            assert origin is not None
            found = measure_forgetting(
                origin, comparison.load(index), comparison.data, resamples=resamples, seed=seed, progress=not quiet
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
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=160)  # a file or pipe has no width to fit
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("checkpoint", overflow="fold")
    for heading in (
        "data",
        "loss before",
        "after",
        "forgetting",
        "accuracy before",
        "after",
        "lost",
        "KL to base",
        "tokens",
    ):
        table.add_column(heading, justify="left" if heading == "data" else "right")
    for result in results:
        for task in result.tasks:
            table.add_row(
                escape(result.name),
                escape(task.name),
                f"{task.loss_before:.4f}",
                f"{task.loss_after:.4f}",
                "{:+.4f}\n[{:+.4f}, {:+.4f}]".format(task.forgetting, *task.forgetting_interval),
                f"{task.accuracy_before:.2%}",
                f"{task.accuracy_after:.2%}",
                "{:+.2%}\n[{:+.2%}, {:+.2%}]".format(task.accuracy_loss, *task.accuracy_interval),
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

"""`landscape design`: how often the verdicts of `landscape correlate` err on a design, and what it can show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from landscape.cli.common import Json, Seed, app, table_console


@app.command()
def design(
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="A CSV file, a row per checkpoint.")],
    metric: Annotated[
        str | None,
        typer.Option(help="The column that the simulated metric resembles. Default: the column of what was forgotten."),
    ] = None,
    forgetting: Annotated[str, typer.Option(help="The column of what was forgotten.")] = "forgetting",
    control: Annotated[list[str] | None, typer.Option(help="A column of numbers held fixed; again for more.")] = None,
    factor: Annotated[
        list[str] | None,
        typer.Option(help="A column of categories held fixed, such as optimizer or lr; again for more."),
    ] = None,
    groups: Annotated[
        str | None,
        typer.Option(help="The column that says which checkpoints belong together; nested ones as recipe/base."),
    ] = None,
    replications: Annotated[int, typer.Option(help="Number of simulated tables without a link.")] = 1000,
    seed: Seed = 0,
    json_output: Json = False,
) -> None:
    """How often `landscape correlate` errs on tables of this design, and how strong a link it needs."""
    from rich.table import Table

    from landscape.correlation.simulation import simulate_design

    result = simulate_design(
        table,
        metric=metric,
        forgetting=forgetting,
        controls=control or (),
        factors=factor or (),
        groups=groups,
        replications=replications,
        seed=seed,
    )
    if json_output:
        rows = result.astype(object).where(result.notna(), None).to_dict("records")
        print(json.dumps({"settings": result.attrs, "rows": rows}, indent=1))
        return
    console = table_console()
    printed = Table(show_edge=False, pad_edge=False)
    for name in ("estimand", "verdict", "where"):
        printed.add_column(name)
    for name in ("false positives", "smallest correlation found"):
        printed.add_column(name, justify="right")
    for _, row in result.iterrows():
        smallest = f"{row['smallest']:.2f}" if row["smallest"] == row["smallest"] else "-"
        rate = f"{row['false_positives']:.1%} ± {row['stderr']:.1%}"
        printed.add_row(row["estimand"], row["verdict"], row["null"], rate, smallest)
    console.print(printed)
    for name, shares in result.attrs["shares"].items():
        parts = ", ".join(f"{level} {share:.0%}" for level, share in shares.items())
        console.print(f"Variance of {name} that factors and controls leave: {parts}.", highlight=False, soft_wrap=True)
    console.print(
        f"{replications} tables of {result.attrs['n']} rows; nominal rate 5%. The smallest correlation is the planted "
        "one that is found in 80% of tables.",
        highlight=False,
        soft_wrap=True,
    )

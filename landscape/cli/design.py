"""`landscape design`: how often the verdicts of `landscape correlate` err on a design, and what it can show."""

from __future__ import annotations

from landscape.cli.checks import check_table
from landscape.cli.options.data import Seed
from landscape.cli.options.output import Json
from landscape.cli.options.statistics import Control, Factor, ForgettingColumn, Groups, Like, Replications, Table
from landscape.cli.tables import open_console, print_json, print_note, print_table


def design(
    table: Table,
    seed: Seed = 0,
    like: Like = None,
    forgetting: ForgettingColumn = "forgetting",
    control: Control = None,
    factor: Factor = None,
    groups: Groups = None,
    replications: Replications = 1000,
    json_output: Json = False,
) -> None:
    """Simulate tables like yours: how often the verdicts of correlate err, and how strong a link they need.

    The simulated tables keep the rows, groups and factors of the table, with the shares of variance estimated from it.
    The planted link is the same in every group; where yours differs between groups, it has to be stronger to be seen.
    Run it before a study, on a table of the runs that you plan, with numbers of a pilot.

        landscape design table.csv --groups recipe/base --factor optimizer --factor lr
    """
    check_table(table, [forgetting, like, *(control or ()), *(factor or ())], groups)
    from landscape.correlation.simulation import simulate_design

    result = simulate_design(
        table,
        like=like,
        forgetting=forgetting,
        controls=control or (),
        factors=factor or (),
        groups=groups,
        replications=replications,
        seed=seed,
    )
    if json_output:
        rows = result.astype(object).where(result.notna(), None).to_dict("records")
        print_json({"settings": result.attrs, "rows": rows})
        return
    console = open_console()
    cells = [
        [
            row["estimand"],
            row["verdict"],
            row["null"],
            f"{row['false_positives']:.1%} ± {row['stderr']:.1%}",
            f"{row['smallest']:.2f}" if row["smallest"] == row["smallest"] else "-",
        ]
        for _, row in result.iterrows()
    ]
    headings = ("estimand", "verdict", "where", "false positives", "smallest correlation found")
    print_table(console, headings, cells, left=headings[:3])
    for name, shares in result.attrs["shares"].items():
        parts = ", ".join(f"{level} {share:.0%}" for level, share in shares.items())
        print_note(console, f"Variance of {name} that factors and controls leave: {parts}.")
    print_note(
        console,
        f"{replications} tables of {result.attrs['n']} rows; nominal rate 5%. The smallest correlation is the planted "
        "one that is found in 80% of tables.",
    )

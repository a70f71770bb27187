"""Options that say where results go and how they are printed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from landscape.cli.options.declaring import OUTPUT, choice, flag, value

StyleName = Literal["paper", "talk", "notebook"]

OutputFolder = Annotated[Path, value(OUTPUT, "--output -o", "FOLDER", "Folder for the results.")]
OutputCheckpoint = Annotated[Path, value(OUTPUT, "--output -o", "FOLDER", "Folder for the new checkpoint.")]
OutputTable = Annotated[Path, value(OUTPUT, "--output -o", "FILE", "CSV file for the table.")]
Results = Annotated[
    Path, typer.Argument(metavar="DIR", help="A folder with results of other commands, also in folders below it.")
]
OutputPage = Annotated[
    Path | None, value(OUTPUT, "--output -o", "FILE", "HTML file for the page. Default: report.html in the folder.")
]
Color = Annotated[
    str | None,
    value(
        OUTPUT,
        "--color",
        "COLUMN",
        "Column that colours the points of scatter plots. Default: optimizer, if the table has that column.",
    ),
]
Style = Annotated[
    StyleName,
    choice(
        OUTPUT,
        "--style",
        StyleName,
        "What figures are for: a column or page of a paper, half or all of a slide, or a notebook.",
    ),
]
Json = Annotated[
    bool, flag(OUTPUT, "--json", "Print one JSON document to standard output in place of text and tables.")
]
Quiet = Annotated[bool, flag(OUTPUT, "--quiet -q", "Show no progress bars.")]

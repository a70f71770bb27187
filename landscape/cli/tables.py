"""How the commands print: tables and notes for people, or one JSON document for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 160  # of tables in files and pipes, which have no width of their own


def open_console() -> Console:
    """The console for tables on standard output."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


def print_table(
    console: Console,
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    left: Collection[str] = (),
    title: str | None = None,
) -> None:
    """Print a table; every cell appears as it is, since markup in names from checkpoints is escaped.

    Args:
        console: Where the table goes.
        headings: One for each column.
        rows: The cells of each row; a cell may have several lines.
        left: Headings of the columns that are aligned to the left; the first column always is.
        title: Text above the table.
    """
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title and escape(title), title_justify="left", show_edge=False, pad_edge=False)
    for index, heading in enumerate(headings):
        justify: Any = "left" if index == 0 or heading in left else "right"
        table.add_column(escape(heading), justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)


def print_note(console: Console, text: str) -> None:
    """Print a sentence below a table, without markup, and without line breaks of its own."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def print_adapters(console: Console, checkpoints: Iterable[dict | None]) -> None:
    """Print how adapters were treated, if there are any, from what the provenance of results says of checkpoints."""
    modes = set().union(*map(_adapter_modes, checkpoints))
    if modes:
        print_note(console, f"adapters: {', '.join(sorted(modes))}")


def _adapter_modes(checkpoint: dict | None) -> set[str]:
    """The words "merged" or "kept" in the provenance of one checkpoint or of several."""
    modes = {checkpoint["adapter"]} if checkpoint and "adapter" in checkpoint else set()
    return modes.union(*(_adapter_modes(part) for part in (checkpoint or {}).values() if isinstance(part, dict)))


def print_json(document: Any) -> None:
    """Print one JSON document to standard output."""
    from landscape.results import to_plain

    print(json.dumps(to_plain(document), indent=1, allow_nan=False))


def print_data(descriptions: Iterable[str]) -> None:
    """Say on standard error what each data set holds."""
    for description in descriptions:
        print(description, file=sys.stderr)


def print_written(*paths: Path | str) -> None:
    """Say on standard error which files or folders hold the results."""
    print("wrote " + "  ".join(map(str, paths)), file=sys.stderr)


def with_interval(value: str, low: str, high: str) -> str:
    """A cell with a value and its interval on the line below."""
    return f"{value}\n[{low}, {high}]"


def with_stderr(value: str, stderr: float | None) -> str:
    """A cell with a value and, where it has one, its standard error on the line below."""
    return value if stderr is None or stderr != stderr else f"{value}\n+- {stderr:.2g}"


def quiet_libraries() -> None:
    """Turn off the progress bars and notes of transformers, which would write over ours."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()

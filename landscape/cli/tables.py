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
_NAME, _LEAST_NAME = 20, 12  # Names are cut to so many characters before spare columns are left out, and after that.


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
    spare: Sequence[str] = (),
    file: str | None = None,
) -> None:
    """Print a table that is no wider than the console; what does not fit is left out, and a line below says so.

    Every cell appears as it is, since markup in names from checkpoints is escaped, and none is wrapped. Where the table
    is too wide, names are shortened in their middle, then columns are left out.

    Args:
        console: Where the table goes.
        headings: One for each column.
        rows: The cells of each row; a cell may have several lines.
        left: Headings of the columns of names, which are aligned to the left; the first column always is one.
        title: Text above the table.
        spare: Headings of the columns that are left out first, in this order; then the last columns are.
        file: Name of the file that holds all of the table, for the line below.
    """
    from rich.markup import escape
    from rich.table import Table

    columns = {index: [heading, *cells] for index, (heading, *cells) in enumerate(zip(headings, *rows, strict=True))}
    names = [index for index, heading in enumerate(headings) if index == 0 or heading in left]
    dropped, shortened = _fit(columns, names, [headings.index(heading) for heading in spare], console.width)
    table = Table(title=title and escape(title), title_justify="left", show_edge=False, pad_edge=False)
    for index, (heading, *_) in columns.items():
        justify: Any = "left" if index in names else "right"
        table.add_column(escape(heading), justify=justify, no_wrap=True, overflow="ellipsis")
    for cells in list(zip(*columns.values(), strict=True))[1:]:
        table.add_row(*map(escape, cells))
    console.print(table)
    if dropped or shortened:
        left_out = f"left out: {', '.join(headings[index] for index in sorted(dropped))}" if dropped else ""
        cut = "names are shortened" if shortened else ""
        where = f"; {file} has all of it" if file else ""
        print_note(console, f"{console.width} columns: {'; '.join(filter(None, (left_out, cut)))}{where}.")


def _fit(
    columns: dict[int, list[str]], names: Sequence[int], spare: Sequence[int], width: int
) -> tuple[list[int], bool]:
    """Shorten names and leave out columns, in place, until a table fits.

    Args:
        columns: The heading and the cells of each column.
        names: The columns whose cells are names.
        spare: The columns to leave out first.
        width: Characters on a line.

    Returns:
        The columns that were left out, and whether names were shortened.
    """

    def fits(longest: int) -> bool:
        """Whether the table fits with names of so many characters, or more where they would be alike."""
        cut = {index: _cut(columns[index], longest) for index in names}
        widths = (_width(cut.get(index, cells)) for index, cells in columns.items())
        return sum(widths) + 3 * (len(columns) - 1) <= width

    dropped: list[int] = []
    others = [index for index in reversed(columns) if index not in names and index not in spare]
    for order, longest in ((spare, _NAME), (others, _LEAST_NAME)):
        for index in order:
            if fits(longest) or len(columns) <= len(names) + 1:
                break
            del columns[index]
            dropped.append(index)
    longest = next((longest for longest in range(_width(_all(columns, names)), _LEAST_NAME, -1) if fits(longest)), 0)
    longest = max(longest, _LEAST_NAME)
    cut = {index: _cut(columns[index], longest) for index in names}
    shortened = any(cut[index] != columns[index] for index in names)
    columns.update(cut)
    return dropped, shortened


def _all(columns: dict[int, list[str]], names: Sequence[int]) -> list[str]:
    """Return the cells of the columns of names together."""
    return [cell for index in names for cell in columns[index]]


def _width(cells: Iterable[str]) -> int:
    """Return the characters of the longest line of the cells."""
    from rich.cells import cell_len

    return max(cell_len(line) for cell in cells for line in cell.split("\n"))


def _cut(cells: Sequence[str], length: int) -> list[str]:
    """Return names cut in their middle to a length at which those that differ still do; the heading stays."""
    heading, *names = cells
    for allowed in range(max(length, len(heading)), max(map(len, names), default=0) + 1):
        cut = {name: name if len(name) <= allowed else _without_middle(name, allowed) for name in names}
        if len(set(cut.values())) == len(cut):
            return [heading, *(cut[name] for name in names)]
    return list(cells)


def _without_middle(name: str, length: int) -> str:
    """Return the beginning and the end of a name around an ellipsis."""
    end = (length - 1) // 2
    return f"{name[: length - 1 - end]}…{name[len(name) - end :]}"


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

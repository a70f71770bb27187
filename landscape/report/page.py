"""The report itself: every chapter reads its files, and their parts make one page."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

from landscape.errors import InputError, nearest_path
from landscape.plotting.page import Section, page_html
from landscape.report.chapters import CHAPTERS
from landscape.report.reading import Chapter, Found, Part, files_in
from landscape.results import write_text

_log = logging.getLogger(__name__)
_MADE_HERE = "made by landscape report"  # in the page, by which it is known again


@dataclasses.dataclass(frozen=True)
class Report:
    """A page, and what it says.

    Attributes:
        html: The complete page, which loads nothing from the network.
        summary: Its summary, in sentences.
        sections: The titles of its sections.
        problems: What could not be shown, in words.
    """

    html: str
    summary: tuple[str, ...]
    sections: tuple[str, ...]
    problems: tuple[str, ...]


def report_html(folder: Path | str, title: str | None = None) -> Report:
    """Show everything that a folder holds on one page.

    The folder and those below it may hold what `landscape plot`, `sharpness`, `hessian`, `forgetting`, `measure` and
    `correlate` wrote, what `landscape design --json` printed, and results that Python saved.

    Args:
        folder: The folder.
        title: The heading; the name of the folder by default.

    Returns:
        The page and its summary. What could not be read is said on the page.

    Raises:
        InputError: There is no such folder, or it holds nothing to show.

    Example:
        >>> import tempfile, torch, landscape
        >>> model, data = torch.nn.Linear(2, 2), [(torch.eye(2), torch.tensor([0, 1]))]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = landscape.compute_surface(model, data, points=5).save(f"{folder}/surface.json")
        ...     landscape.report_html(folder).sections
        ('Loss surfaces along random directions',)
    """
    folder = Path(folder)
    if not folder.is_dir():
        what = "is a file, not a folder with results" if folder.exists() else "does not exist"
        raise InputError(f"{folder} {what}.{'' if folder.exists() else nearest_path(folder)}")
    whole = _whole(folder)
    if not whole.sections:
        said = f" {whole.problems[0]}" if whole.problems else ""
        raise InputError(
            f"{folder} holds no results to show; give the folder that a command such as landscape plot wrote to.{said}"
        )
    title = title or f"Report of {folder.resolve().name}"
    summary = [*whole.sentences, *(f"Not shown: {problem}" for problem in whole.problems)]
    origin = (
        f"Page {_MADE_HERE}. It loads nothing from the network. Settings, seeds and digests are under each section."
    )
    page = page_html(title, whole.sections, summary, origin)
    return Report(page, tuple(summary), tuple(s.title for s in whole.sections), tuple(whole.problems))


def write_report(folder: Path | str, output: Path | str, title: str | None = None) -> Report:
    """Write the page of `report_html` to a file, which is there completely or not at all.

    Args:
        folder: The folder with results.
        output: The HTML file. A report that is there already is replaced.
        title: The heading; the name of the folder by default.

    Returns:
        The page and its summary.

    Raises:
        InputError: As `report_html` does, or `output` is there and no report.
    """
    output = Path(output)
    check_output(output)
    report = report_html(folder, title)
    write_text(output, report.html)
    return report


def check_output(output: Path) -> None:
    """Raise InputError where a report cannot be written to a path, or would replace something else."""
    if output.is_dir():
        raise InputError(f"{output} is a folder; name a file in it, such as {output / 'report.html'}.")
    if output.exists() and _MADE_HERE not in output.read_text(encoding="utf-8", errors="replace"):
        raise InputError(f"{output} exists and is not a report; choose another name.")


def _whole(folder: Path) -> Part:
    """The parts of all chapters, in their order."""
    found: dict[int, list[Found[Any]]] = {index: [] for index in range(len(CHAPTERS))}
    whole, unknown = Part(), set()
    for file in files_in(folder):
        shown = False
        for index, chapter in enumerate(CHAPTERS):
            try:
                content = chapter.read(file)
            except InputError as error:
                whole.problems.append(str(error))
                shown = True
                break
            if content is not None:
                found[index].append(Found(content, file))
                shown = True
        if file.format and not shown:
            unknown.add(file.format)
    for index, chapter in enumerate(CHAPTERS):
        if found[index]:
            _add(whole, chapter, found[index])
    if unknown:
        whole.problems.append(f"this version has no section for {', '.join(sorted(unknown))}.")
    for problem in whole.problems:
        _log.warning("not in the report: %s", problem)
    return whole


def _add(whole: Part, chapter: Chapter, found: list[Found[Any]]) -> None:
    part = chapter.part(found)
    sections: list[Section] = part.sections
    whole.sections += sections
    whole.sentences += part.sentences
    whole.problems += part.problems

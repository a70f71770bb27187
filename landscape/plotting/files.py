"""Figures and pages as files: each file is there completely or not at all, and the same results give the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from landscape.results import replacing, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_figure(figure: Figure, stem: Path | str) -> list[Path]:
    """Write `figure` to `stem`.png and `stem`.pdf."""
    stem = Path(stem)
    png, pdf = (stem.with_name(f"{stem.name}.{suffix}") for suffix in ("png", "pdf"))
    with replacing(png) as temporary:
        figure.savefig(temporary)
    with replacing(pdf) as temporary:
        figure.savefig(temporary, metadata={"CreationDate": None})  # the date would make every file differ
    return [png, pdf]


def write_page(page: str, stem: Path | str) -> Path:
    """Write the HTML of `page` to `stem`.html."""
    stem = Path(stem)
    path = stem.with_name(f"{stem.name}.html")
    write_text(path, page)
    return path

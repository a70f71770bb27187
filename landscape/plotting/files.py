"""Figures and pages as files: each file is there completely or not at all, and the same results give the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from landscape.results import replacing, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from landscape.plotting.paper_style import PaperFigure

# What LaTeX takes for a command, and the signs of our captions that pdflatex has no letter for. All else stays.
_LATEX = str.maketrans(
    {sign: f"\\{sign}" for sign in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
    | {"…": r"\ldots{}", "\N{EN DASH}": "--", "\N{MINUS SIGN}": "$-$", "\N{MULTIPLICATION SIGN}": r"$\times$"}
    | {"±": r"$\pm$", "≥": r"$\geq$", "≤": r"$\leq$", "ρ": r"$\rho$", "τ": r"$\tau$"}
    | {"\N{REPLACEMENT CHARACTER}": "?"}
)


def write_figure(figure: Figure, stem: Path | str) -> list[Path]:
    """Write `figure` to `stem`.png and `stem`.pdf, and its caption to `stem`.txt and `stem`.tex.

    The PDF leaves out the caption, because a paper sets it from `stem`.tex, a LaTeX `caption` command. A figure with
    an empty caption has no file of it.
    """
    ours = cast("PaperFigure", figure)
    stem = Path(stem)
    png, pdf, txt, tex = (stem.with_name(f"{stem.name}.{suffix}") for suffix in ("png", "pdf", "txt", "tex"))
    with replacing(png) as temporary:
        ours.savefig(temporary)
    with replacing(pdf) as temporary:
        ours.savefig_without_caption(temporary, metadata={"CreationDate": None})  # dates make files differ
    if not ours.caption:
        return [png, pdf]
    write_text(txt, f"{ours.caption}\n")
    write_text(tex, f"\\caption{{{latex(ours.caption)}}}\n")
    return [png, pdf, txt, tex]


def latex(text: str) -> str:
    r"""A text as LaTeX shows it, whatever it says.

    Example:
        >>> latex("50% of a_b at 10\N{MULTIPLICATION SIGN}10")
        '50\\% of a\\_b at 10$\\times$10'
    """
    return text.replace("--", "-\N{ZERO WIDTH SPACE}-").translate(_LATEX).replace("\N{ZERO WIDTH SPACE}", "{}")


def write_page(page: str, stem: Path | str) -> Path:
    """Write the HTML of `page` to `stem`.html."""
    stem = Path(stem)
    path = stem.with_name(f"{stem.name}.html")
    write_text(path, page)
    return path

"""The HTML page around an interactive plot. Texts that come from outside are escaped here."""

from __future__ import annotations

import html
from collections.abc import Sequence

from landscape.plotting.basics import clean

FONT = "Arial, Helvetica, 'Liberation Sans', sans-serif"

# The policy is a second lock behind the escaping: even if a script got into the page, it could load and send nothing.
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline'; \
style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ margin: 0 auto; max-width: {widest}px; padding: 1rem 1.5rem 2rem; color: #222; background: #fff;
       font: 15px/1.45 {font}; }}
h1 {{ font-size: 1.35rem; margin: 0.2rem 0 0.6rem; overflow-wrap: anywhere; }}
.plot {{ overflow-x: auto; }}
.plot > div {{ min-width: {narrowest}px; }}
.caption {{ max-width: 75ch; color: #444; font-size: 0.9rem; overflow-wrap: anywhere; }}
table {{ border-collapse: collapse; font-size: 0.9rem; }}
th, td {{ text-align: left; padding: 0.25rem 1rem 0.25rem 0; border-bottom: 1px solid #ddd;
         overflow-wrap: anywhere; }}
td {{ font-variant-numeric: tabular-nums; }}
</style>
</head>
<body>
<h1>{title}</h1>
<div class="plot">{plot}</div>
<p class="caption">{caption}</p>
<table>
{table}
</table>
</body>
</html>
"""


def html_page(
    title: str,
    plot: str,
    caption: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    width: tuple[int, int],
) -> str:
    """Make a complete page with a title, a plot, a caption and a table.

    Args:
        title: Text of the heading.
        plot: HTML, which goes in as it is. All other arguments are text and are escaped.
        caption: Text under the plot.
        header: Texts of the table's first row.
        rows: Texts of the other rows.
        width: The least width of the plot and the greatest width of the page, in pixels.

    Returns:
        HTML that loads nothing from the network.
    """
    return _PAGE.format(
        title=html.escape(clean(title)),
        font=FONT,
        narrowest=width[0],
        widest=width[1],
        plot=plot,
        caption=html.escape(clean(caption)),
        table="\n".join(_row(cells, "th" if cells is header else "td") for cells in (header, *rows)),
    )


def _row(cells: Sequence[str], tag: str) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(clean(cell))}</{tag}>' for cell in cells)}</tr>"

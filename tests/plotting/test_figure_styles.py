"""The styles of figures: widths, sizes of text, captions beside the figure, fonts in the PDF, colours."""

import dataclasses
import re
import shutil
import subprocess

import matplotlib
import numpy as np
import pytest
from colorspacious import cspace_convert
from made_surfaces import LINE, curve, surface_of
from PIL import Image
from test_plotting import pair
from test_plotting_correlation import found_in, study
from test_plotting_curvature import measured  # noqa: F401  a fixture

from landscape import InputError
from landscape.plotting import (
    caption_for,
    plot_correlation_scatter,
    plot_correlations,
    plot_surfaces,
    write_figures,
)
from landscape.plotting.basics import COLORS
from landscape.plotting.files import latex, write_figure
from landscape.plotting.paper_style import STYLES

COLUMNS = {"paper": (3.25, 6.75), "talk": (6.4, 13.0), "notebook": (5.0, 9.6)}  # inches
BLINDNESS = ("deuteranomaly", "protanomaly", "tritanomaly")


def figures(style, measured):  # noqa: F811
    """A narrow and several wide figures."""
    several = [dataclasses.replace(surface, name=f"{surface.name}-{i}") for i in range(3) for surface in pair()]
    line = surface_of(curve, LINE)
    found, table = found_in(study(), 99), study()
    return {
        "narrow": [
            plot_surfaces([line], style=style),
            measured["trace", "adamw"].plot(style=style),
            measured["density", "adamw"].plot(style=style),
        ],
        "wide": [
            plot_surfaces([dataclasses.replace(line, data=data) for data in ("old", "new", "third")], style=style),
            plot_correlations(found, style=style),
            plot_correlation_scatter(found, table, style=style),
            measured["layers", "adamw"].plot(style=style),
        ],
        "planes": [plot_surfaces(several[:count], style=style) for count in (2, 3, 6)],
    }


@pytest.mark.parametrize("style", STYLES)
def test_figures_are_as_wide_as_a_column_or_the_page(style, measured):  # noqa: F811
    """Rejects panels of one size side by side: three were wider than a page, and shrank to unreadable text there."""
    single, double = COLUMNS[style]
    drawn = figures(style, measured)
    for figure in drawn["narrow"]:
        assert figure.get_size_inches()[0] == pytest.approx(single)
    for figure in drawn["wide"]:
        assert figure.get_size_inches()[0] == pytest.approx(double)
    for figure in drawn["planes"]:  # a slide is not high enough for panels that fill its width
        assert single < figure.get_size_inches()[0] <= double + 1e-9
    if style == "talk":
        assert all(figure.get_size_inches()[1] <= 7.5 for figure in drawn["planes"][:2])


@pytest.mark.parametrize(("style", "points"), [("paper", 8), ("talk", 16), ("notebook", 10)])
def test_text_and_lines_grow_with_the_style(style, points):
    figure = plot_surfaces([surface_of(curve, LINE)], style=style)
    assert figure.axes[0].xaxis.label.get_fontsize() == points
    assert figure.axes[0].lines[0].get_linewidth() == pytest.approx(1.4 * points / 8)
    view = plot_surfaces(pair(), style=style).axes[0]
    assert view.xaxis.label.get_fontsize() == pytest.approx(7 * points / 8)


def test_an_unknown_style_is_refused():
    with pytest.raises(InputError, match="style='poster' is not one of paper, talk, notebook"):
        plot_surfaces(pair(), style="poster")


# --- captions -----------------------------------------------------------------------------------------------


def test_the_caption_stands_beside_the_figure_and_not_in_the_pdf(tmp_path):
    """Rejects a PDF whose caption LaTeX would set a second time, and a slide with small print."""
    lines = [surface_of(curve, LINE, name="run_1", data="50%_code")]
    paths = {path.suffix: path for path in write_figures(lines, tmp_path / "surface")}
    assert paths[".txt"].read_text() == caption_for(lines) + "\n"
    assert r"\caption{Loss" in paths[".tex"].read_text()
    assert r"50\%\_code" in paths[".tex"].read_text()
    height = plot_surfaces(lines).get_size_inches()[1]
    bare = plot_surfaces(lines, caption="").get_size_inches()[1]
    assert height > bare + 0.3
    box = re.search(rb"/MediaBox \[ 0 0 ([\d.]+) ([\d.]+) \]", paths[".pdf"].read_bytes())
    assert [float(side) / 72 for side in box.groups()] == pytest.approx([3.25, bare], abs=0.01)  # to a dot of 1/72"
    assert Image.open(paths[".png"]).size == pytest.approx((3.25 * 300, height * 300), abs=1)
    assert [path.suffix for path in write_figures(lines, tmp_path / "bare", caption="")] == [".png", ".pdf", ".html"]

    talk = plot_surfaces(lines, style="talk")
    assert talk.get_size_inches()[1] == pytest.approx(2 * bare)
    write_figure(talk, tmp_path / "talk")
    assert (tmp_path / "talk.txt").read_text() == caption_for(lines) + "\n"


def test_latex_takes_nothing_in_a_caption_for_a_command():
    text = r"a_b & 5% of $x$ # {y} \input ~ ^ <z> 3×3, −1 ± 2, ρ ≥ 0… --old é"
    expected = (
        r"a\_b \& 5\% of \$x\$ \# \{y\} \textbackslash{}input \textasciitilde{} \textasciicircum{} "
        r"\textless{}z\textgreater{} 3$\times$3, $-$1 $\pm$ 2, $\rho$ $\geq$ 0\ldots{} -{}-old é"
    )
    assert latex(text) == expected


# --- fonts --------------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("pdffonts") is None, reason="pdffonts, of poppler-utils, is not installed")
@pytest.mark.parametrize("style", STYLES)
def test_every_font_in_the_pdf_is_embedded_truetype(style, tmp_path):
    write_figure(plot_surfaces(pair(), style=style), tmp_path / "surface")
    listed = subprocess.run(["pdffonts", tmp_path / "surface.pdf"], capture_output=True, text=True, check=True).stdout
    fonts = [line for line in listed.splitlines()[2:] if line]
    assert fonts
    for line in fonts:  # name, type, encoding, embedded, subset, Unicode
        assert re.search(r"TrueType\s.*\syes\s+(yes|no)\s+(yes|no)\s", line), line


# --- colours ------------------------------------------------------------------------------------------------


def seen(colors, blindness):
    """Colours as CAM02-UCS coordinates (J', a', b'), as somebody without one kind of cones sees them."""
    space = {"name": "sRGB1+CVD", "cvd_type": blindness, "severity": 100}
    simulated = cspace_convert(colors, space, "sRGB1") if blindness else colors
    return cspace_convert(np.clip(simulated, 0, 1), "sRGB1", "CAM02-UCS")


@pytest.mark.parametrize("blindness", [None, *BLINDNESS])
def test_the_colours_of_lines_are_told_apart(blindness):
    """Okabe and Ito's palette, by the simulation of Machado et al. 2009. A difference of 1 is just noticed.

    Measured: the first two colours are at least 49 apart, any two of the seven at least 11. Rejects matplotlib's
    red and green as the first two, which are 5 apart for deuteranopes, and any colour that comes twice.
    """
    coordinates = seen([matplotlib.colors.to_rgb(color) for color in COLORS], blindness)
    distances = np.linalg.norm(coordinates[:, None] - coordinates[None, :], axis=-1)
    assert distances[0, 1] > 40
    assert distances[np.triu_indices(len(COLORS), 1)].min() > 10


@pytest.mark.parametrize("blindness", [None, *BLINDNESS])
def test_the_map_of_losses_grows_lighter_from_end_to_end(blindness):
    """Rejects jet, which gets lighter and darker again, so that in grey two losses look alike."""
    lightness = seen(matplotlib.colormaps["viridis"](np.linspace(0, 1, 65))[:, :3], blindness)[:, 0]
    assert (np.diff(lightness) > 0).all()
    assert np.ptp(lightness) > 50


@pytest.mark.parametrize("blindness", [None, *BLINDNESS])
def test_the_map_of_effects_grows_lighter_to_its_middle_and_its_ends_differ(blindness):
    coordinates = seen(matplotlib.colormaps["RdBu_r"](np.linspace(0, 1, 65))[:, :3], blindness)
    assert (np.diff(coordinates[:33, 0]) > 0).all()
    assert (np.diff(coordinates[32:, 0]) < 0).all()
    assert np.linalg.norm(coordinates[0] - coordinates[-1]) > 20  # measured: 24 for protanopes, more for others

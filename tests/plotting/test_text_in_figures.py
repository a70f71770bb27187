"""No text of a figure of any style leaves it, or lies under another panel or text, in the widest font that may be had.

DejaVu Sans comes with matplotlib, and is wider than Arial. What counts is the text that is drawn, at the resolutions of
a screen, of a notebook and of a file.
"""

from __future__ import annotations

import dataclasses
import itertools

import matplotlib.text
import numpy as np
import pytest
from made_surfaces import LINE, bowl, curve, surface_of
from test_plotting import interpolation, pair, plane
from test_plotting_correlation import METRICS, found_in, study
from test_plotting_curvature import measured  # noqa: F401  a fixture

from landscape.plotting import (
    paper_style,
    plot_correlation_scatter,
    plot_correlations,
    plot_density,
    plot_layers,
    plot_surfaces,
)

LONG = "-a-checkpoint-with-a-rather-long-name-of-many-parts-step-12000"


def named(results, suffix):
    return [dataclasses.replace(result, name=result.name + suffix) for result in results]


def scaled(factor):
    return [dataclasses.replace(s, loss=s.loss * factor, center=s.center * factor) for s in pair()]


def flat(extent):
    """A plane that is much wider than high, or the other way round."""
    return surface_of(bowl, (np.linspace(-extent, extent, 7), np.linspace(-1, 1, 5)), name="flat")


SURFACES = {
    "two checkpoints": pair,
    "long names": lambda: named(pair(), LONG),
    "one": lambda: pair()[:1],
    "two data sets": lambda: [dataclasses.replace(s, data=data) for s in pair() for data in ("old", "new")],
    "large losses": lambda: scaled(1e6),
    "small losses": lambda: scaled(1e-6),
    "negative losses": lambda: scaled(-1234.5),
    "a plane with markers": lambda: [plane()],
    "a wide plane": lambda: [flat(30.0)],
    "a narrow plane": lambda: [flat(0.03)],
    "lines": lambda: [surface_of(curve, LINE, name=name) for name in ("a", "b" + LONG, "c" * 90)],
    "lines of large losses": lambda: [surface_of(lambda x: 1e6 * curve(x), LINE, name="a")],
    "an interpolation": lambda: [interpolation("a")],
    "five": lambda: [dataclasses.replace(s, name=f"{s.name}-{i}") for i in range(3) for s in pair()][:5],
}
CURVATURE = {
    "density": plot_density,
    "layers": plot_layers,
    "eigenvalues": lambda results, style: results[0].plot(style=style),
    "trace": lambda results, style: results[0].plot(style=style),
    "plane": plot_surfaces,
    "line": plot_surfaces,
}


@pytest.fixture
def drawn(monkeypatch):
    """Draw a figure in DejaVu Sans; every text that is drawn, with the box that it takes, in dots."""
    monkeypatch.setattr(paper_style, "FONTS", ("DejaVu Sans",))
    monkeypatch.setitem(paper_style.LOOK, "font.family", ["sans-serif"])
    seen = []
    draw = matplotlib.text.Text.draw

    def note(self, renderer, *arguments, **options):
        if self.get_visible() and self.get_text().strip():
            seen.append(self)
        return draw(self, renderer, *arguments, **options)

    monkeypatch.setattr(matplotlib.text.Text, "draw", note)

    def texts_of(figure, dpi):
        seen.clear()
        figure.set_dpi(dpi)
        with figure.style.context():
            figure.canvas.draw()
            return [(text, text.get_window_extent(figure.canvas.get_renderer())) for text in dict.fromkeys(seen)]

    return texts_of


def assert_all_is_seen(figure, drawn):
    for dpi in (110, 150, 300) if figure.style is paper_style.STYLES["paper"] else (100,):
        texts = drawn(figure, dpi)
        assert len(texts) > 5
        for text, box in texts:
            beyond = max(-box.x0, -box.y0, box.x1 - figure.bbox.x1, box.y1 - figure.bbox.y1)
            assert beyond <= 0.5, f"{text.get_text()!r} leaves the figure by {beyond:.1f} dots at {dpi} dpi"
            for axes in figure.axes:  # drawn one after the other, each with a white ground unless it is a view
                if text.axes in (None, axes) or not axes.patch.get_visible():
                    continue
                assert overlap(box, axes.bbox) <= 1, f"{text.get_text()!r} lies under another panel at {dpi} dpi"
        upright = [(text, box) for text, box in texts if text.get_rotation() % 90 == 0]  # or the box is not the text's
        for (text, box), (other, its_box) in itertools.combinations(upright, 2):
            both = overlap(box, its_box)  # a box has a margin around its letters
            assert both <= 0.02 * dpi * figure.style.scale, f"{text.get_text()!r} and {other.get_text()!r} overlap"


def overlap(a, b):
    """The side of the square that fits into what two boxes share; negative where they are apart."""
    return min(min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0))


@pytest.mark.parametrize("style", paper_style.STYLES)
@pytest.mark.parametrize("kind", SURFACES)
def test_surfaces(kind, style, drawn):
    """Rejects a caption measured at one resolution and drawn at another, and a colour bar whose label has no room."""
    assert_all_is_seen(plot_surfaces(SURFACES[kind](), style=style), drawn)


@pytest.mark.parametrize("style", paper_style.STYLES)
def test_a_logarithmic_surface(style, drawn):
    assert_all_is_seen(plot_surfaces(pair(), log=True, style=style), drawn)


@pytest.mark.parametrize("style", paper_style.STYLES)
@pytest.mark.parametrize("suffix", ["", LONG])
@pytest.mark.parametrize("kind", CURVATURE)
def test_curvature(kind, suffix, style, measured, drawn):  # noqa: F811
    """Rejects a legend broken at a count of letters."""
    results = named([measured[kind, "adamw"], measured[kind, "sam"]], suffix)
    assert_all_is_seen(CURVATURE[kind](results, style=style), drawn)


@pytest.mark.parametrize("style", paper_style.STYLES)
@pytest.mark.parametrize("suffix", ["", LONG.replace("-", "_")])
def test_correlations(suffix, style, drawn):
    table = study().rename(columns={"decades": "decades" + suffix, "optimizer": "optimizer" + suffix})
    metrics = [name + suffix * (name == "decades") for name in METRICS]
    result = found_in(table, 99, flatness=metrics)
    assert_all_is_seen(plot_correlations(result, style=style), drawn)
    assert_all_is_seen(plot_correlation_scatter(result, table, style=style), drawn)


def test_a_line_of_text_is_as_wide_at_every_resolution(drawn):
    """Rejects hinted letters: the caption's lines were up to 7% wider at 110 dpi than at 600."""
    figure = plot_surfaces(pair())
    widths = []
    for dpi in (72, 96, 110, 150, 300, 600):
        boxes = {text: box for text, box in drawn(figure, dpi) if text in figure.texts}
        widths.append(max(box.width for box in boxes.values()) / dpi)
    assert max(widths) / min(widths) < 1.02  # a dot of 72 to the inch is 0.2% of the width, and there are 2 ends

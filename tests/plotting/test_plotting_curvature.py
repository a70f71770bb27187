"""Pictures of curvature, drawn of real measurements: they show the numbers, and say what limits them."""

from __future__ import annotations

import dataclasses
import html
import re
import warnings

import numpy as np
import pytest
from browser import CHROMIUM, EVIL, browse
from conftest import build_model, make_batches
from test_plotting import contours, texts

import landscape
from landscape.curvature.results import INVARIANCE
from landscape.errors import InputError
from landscape.plotting import (
    caption_for,
    density_html,
    layers_html,
    plot_density,
    plot_layers,
    plot_surfaces,
    surfaces_html,
    write_density_figures,
    write_layer_figures,
)


def named(result, name, data="docs", **changes):
    """`result` as if of another checkpoint and of token data."""
    tokens = {"source": data, "digest": data.ljust(64, "0"), "supervised_tokens": 78}
    provenance = dataclasses.replace(result.provenance, data=tokens)
    return dataclasses.replace(result, name=name, data=data, provenance=provenance, **changes)


@pytest.fixture(scope="module")
def measured():
    """Every result of two small models, some of them cut short of convergence."""
    found = {}
    for name, seed in (("adamw", 0), ("sam", 1)):
        model, data = build_model("llama", seed, num_hidden_layers=1), make_batches(examples=3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            directions = landscape.eigen_directions(model, data)
            results = {
                "density": landscape.hessian_density(model, data, probes=2, steps=12),
                "layers": landscape.hessian_layers(model, data, max_probes=4, max_matvecs=8),
                "eigenvalues": landscape.hessian_eigenvalues(model, data, k=3, max_matvecs=8, rtol=1e-6),
                "trace": landscape.hessian_trace(model, data, max_probes=8),
                "plane": landscape.compute_surface(
                    model, data, directions, points=5, span=0.5, run=landscape.Run(progress=False)
                ),
                "line": landscape.compute_surface(
                    model, data, directions[:1], points=5, span=0.5, run=landscape.Run(progress=False)
                ),
            }
        found |= {(kind, name): named(result, name) for kind, result in results.items()}
    return found


@pytest.fixture
def pair(measured):
    return lambda kind: [measured[kind, "adamw"], measured[kind, "sam"]]


# --- spectral density ---------------------------------------------------------------------------------------


def test_densities_share_kernel_axes_and_show_extreme_nodes(pair):
    densities = pair("density")
    figure = plot_density(densities)
    (axes,) = figure.axes
    width = 0.01 * (max(d.nodes.max() for d in densities) - min(d.nodes.min() for d in densities))
    curves = [line for line in axes.lines if line.get_marker() == "None"]
    for density, line in zip(densities, curves, strict=True):
        assert np.allclose(line.get_ydata(), density.curve(1024, width)[1])
    ticks = [set(line.get_xdata()) for line in axes.lines if line.get_marker() == "|"]
    assert ticks == [{*d.nodes.max(1), *d.nodes.min(1)} for d in densities]
    single = 1 / (densities[0].parameters * width * np.sqrt(2 * np.pi))
    assert axes.get_yscale() == "log"
    assert axes.get_ylim()[0] == pytest.approx(single / 100)
    said = texts(figure).replace("\n", " ")
    facts = (f"{densities[0].parameters:,} eigenvalues", "2 probes of 12 steps", f"{width:.2g}")
    for fact in (
        *facts,
        f"docs ({densities[0].weight:g} supervised tokens)",
        densities[0].hvp,
        INVARIANCE["eigenvalues"],
    ):
        assert fact in said


def test_densities_of_two_data_sets_get_a_panel_each(pair):
    code = [named(density, density.name, "code") for density in pair("density")]
    figure = plot_density([*pair("density"), *code])
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["docs", "code"]


@pytest.mark.parametrize("draw", [plot_density, density_html])
def test_densities_that_do_not_compare_are_refused(pair, draw):
    first, other = pair("density")
    digest = dataclasses.replace(other.provenance, data={**other.provenance.data, "digest": "1" * 64})
    chosen = dataclasses.replace(other.provenance, settings={**other.provenance.settings, "parameters": "lm_head*"})
    for change, said in (
        ({"curvature": "ggn"}, "matrix: hessian against ggn"),
        ({"parameters": 7}, "number of parameters"),
        ({"provenance": digest}, "different data"),
        ({"provenance": chosen}, "parameters: None against lm_head"),
        ({"name": "adamw"}, "both 'adamw' on 'docs'"),
        ({"nodes": np.full_like(other.nodes, np.nan)}, "not finite"),
    ):
        with pytest.raises(InputError, match=said):
            draw([first, dataclasses.replace(other, **change)])
    with pytest.raises(InputError, match="no spectral densities"):
        draw([])


def test_density_of_one_eigenvalue_and_bad_moments_still_draw(pair, tmp_path):
    first = pair("density")[0]
    flat = dataclasses.replace(first, nodes=np.full_like(first.nodes, 2.0), moment_error=0.02)
    figure = plot_density([flat])
    figure.savefig(tmp_path / "flat.png")
    assert "moments off by 2e-02" in texts(figure)
    assert "moments off by 2e-02" in density_html([flat])


# --- layers -------------------------------------------------------------------------------------------------


def with_converged(table, converged):
    return dataclasses.replace(
        table, layers=tuple(dataclasses.replace(row, converged=converged) for row in table.layers)
    )


def test_layers_stand_in_order_with_hollow_bars_where_not_converged(pair):
    tables = [with_converged(table, True) for table in pair("layers")]
    rows = (*with_converged(tables[0], False).layers[:1], *tables[0].layers[1:])
    tables[0] = dataclasses.replace(tables[0], layers=rows)
    figure = plot_layers(tables)
    trace, top = figure.axes
    names = [row.name for row in tables[0].layers]
    assert [label.get_text() for label in trace.get_yticklabels()] == names
    assert trace.get_ylim()[0] > trace.get_ylim()[1]  # downwards
    for axes, field in ((trace, "trace"), (top, "top")):
        drawn = [bar.get_width() for bar in axes.patches]
        assert np.allclose(drawn, [getattr(row, field) for table in tables for row in table.layers])
    hollow = [bar.get_facecolor()[:3] == (1, 1, 1) for bar in top.patches]
    assert hollow == [True] + [False] * (len(hollow) - 1)
    assert f"Hollow: eigenvalue not converged (adamw: {names[0]})" in texts(figure).replace("\n", " ")
    assert layers_html(tables).count("not converged") >= 2


def test_layers_that_do_not_compare_are_refused_and_lost_values_counted(pair):
    first, other = pair("layers")
    with pytest.raises(InputError, match="layers"):
        plot_layers([first, dataclasses.replace(other, layers=other.layers[1:])])
    with pytest.raises(InputError, match="no layer"):
        layers_html([dataclasses.replace(first, layers=())])
    lost = dataclasses.replace(first, layers=(dataclasses.replace(first.layers[0], trace=np.nan), *first.layers[1:]))
    assert "1 value not finite" in texts(plot_layers([lost])).replace("\n", " ")


# --- single results and files -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["eigenvalues", "trace", "density", "layers", "plane", "line"])
def test_every_result_plots_itself_whatever_its_name(measured, kind, tmp_path):
    result = measured[kind, "adamw"]
    result.plot().savefig(tmp_path / "plain.png")
    named(result, EVIL, EVIL).plot().savefig(tmp_path / "evil.pdf")
    assert "Our words." in texts(result.plot(caption="Our words."))


def test_eigenvalues_are_hollow_where_not_converged(measured):
    result = measured["eigenvalues", "adamw"]
    assert not all(result.converged)
    figure = result.plot()
    points = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert [float(line.get_ydata()[0]) for line in points] == pytest.approx(list(result.values))
    assert [line.get_markerfacecolor() != "white" for line in points] == list(result.converged)
    assert "not converged to 1e-06" in texts(figure).replace("\n", " ")


def test_trace_shows_probes_mean_and_interval(measured):
    result = measured["trace", "adamw"]
    figure = result.plot()
    (axes,) = figure.axes
    assert sum(bar.get_height() for bar in axes.patches if bar.get_y() == 0) >= result.probes
    assert axes.lines[0].get_xdata()[0] == result.value
    assert f"95% interval {result.confidence_interval[0]:.4g}".replace("-", "−") in texts(figure).replace("\n", " ")
    one = {"samples": np.array([1.0]), "confidence_interval": (-np.inf, np.inf)}
    dataclasses.replace(result, **one).plot()


@pytest.mark.slow
def test_written_pictures_are_the_same_each_time(pair, tmp_path):
    for write, kind in ((write_density_figures, "density"), (write_layer_figures, "layers")):
        first, second = (write(pair(kind), tmp_path / folder / kind) for folder in "ab")
        assert [path.name for path in first] == [f"{kind}.{suffix}" for suffix in ("png", "pdf", "txt", "tex", "html")]
        assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


# --- along eigenvectors -------------------------------------------------------------------------------------


def test_surfaces_along_eigenvectors_keep_their_own_labels_and_say_whose_they_are(pair):
    planes = pair("plane")
    assert planes[0].axis_labels != planes[1].axis_labels
    panels = contours(plot_surfaces(planes))
    assert [(p.get_xlabel(), p.get_ylabel()) for p in panels] == [surface.axis_labels for surface in planes]
    caption = caption_for(planes)
    assert "distances along unit Hessian eigenvectors of each checkpoint's own loss; both signs" in caption
    assert "draw" not in caption
    one_sided = [dataclasses.replace(s, axes=tuple(axis + 0.5 for axis in s.axes)) for s in planes]
    assert "both signs" not in caption_for(one_sided)
    assert "the same on more than one data set" in caption_for([*planes, named(planes[0], "adamw", "code")])
    with pytest.raises(InputError, match="axes"):
        plot_surfaces([planes[0], one_sided[1]])
    lines = pair("line")
    figure = plot_surfaces(lines)
    assert figure.axes[0].get_xlabel() == "distance along the eigenvector"
    for line in lines:
        assert line.axis_labels[0] in texts(figure)
        assert f"{line.name} ({line.axis_labels[0]})" in surfaces_html(lines)


# --- browser ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium found")
@pytest.mark.parametrize(("kind", "page_of"), [("density", density_html), ("layers", layers_html)])
def test_browser_draws_pages_and_shows_names_literally(pair, tmp_path, kind, page_of):
    first, second = pair(kind)
    page = page_of([named(first, EVIL, EVIL), named(second, "sam", EVIL)], title=EVIL)
    dom = browse(page, tmp_path)
    assert 'class="plot js-plotly-plot"' in dom
    outside = re.sub(r"<script.*?</script>", "", dom, flags=re.DOTALL)
    assert not re.search(r"<img src=.?x|<a [^>]*example\.org", outside)
    shown = [html.unescape(text) for text in re.findall(r">([^<>]+)<", outside)]
    assert EVIL in shown
    assert "sam" in shown

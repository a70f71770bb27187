"""Pictures of correlations: every metric is there, with its numbers, and nothing in a name can break them."""

from __future__ import annotations

import html
import re
import warnings

import numpy as np
import pandas
import pytest
from browser import CHROMIUM, EVIL, Elements, browse, told, with_script
from markupsafe import escape
from test_plotting import texts

from landscape import InputError, MeasurementWarning, Resampling, correlate
from landscape.plotting import (
    correlations_html,
    plot_correlation_scatter,
    plot_correlations,
    write_correlation_figures,
)
from landscape.plotting.correlation.interactive import forest_plot, scatter_plot
from landscape.plotting.correlation.shared import forest_of, scatter_of, significant


def study(rows: int = 24) -> pandas.DataFrame:
    """Metrics of every fate: strong, weak, negative, over decades, constant, almost empty, without an interval."""
    generator = np.random.default_rng(0)
    y = generator.standard_normal(rows)
    almost = np.zeros(rows)
    almost[3] = 1  # a third of the resamples lack this row
    return pandas.DataFrame(
        {
            "checkpoint": [f"run-{i}" for i in range(rows)],
            "optimizer": ["adamw", "sam"] * (rows // 2),
            "base": np.arange(rows) // 4,
            "forgetting": y,
            "loss": 0.5 * y + generator.standard_normal(rows),
            "random": generator.standard_normal(rows),
            "decades": np.exp(3 * (y + 0.3 * generator.standard_normal(rows))),
            "inverse": -y + generator.standard_normal(rows),
            "steps": np.ones(rows),
            "empty": np.where(np.arange(rows) < 2, 1.0 + np.arange(rows), np.nan),
            "almost": almost,
        }
    )


METRICS = ["steps", "random", "decades", "inverse", "empty", "almost"]


def found_in(table: pandas.DataFrame, resamples: int = 499, **options) -> pandas.DataFrame:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MeasurementWarning)
        options = {"flatness": METRICS, "controls": ["loss"]} | options
        return correlate(table, resampling=Resampling(resamples), **options)


@pytest.fixture(scope="module")
def table():
    return study()


@pytest.fixture(scope="module")
def result(table):
    return found_in(table)


def test_a_metric_whose_interval_holds_zero_is_not_marked_whatever_its_q():
    row = {"estimate": 0.3, "low": -0.1, "high": 0.6, "q": 0.01}
    assert not significant(row)
    assert significant(row | {"low": 0.1})
    assert not significant(row | {"low": 0.1, "q": 0.06})


def test_forest_shows_every_metric_sorted_with_what_has_no_number_last(result):
    axes = plot_correlations(result).axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["decades", "inverse", "random", "almost", "steps", "empty"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # downwards
    of = result.set_index("metric")
    points = [line for line in axes.lines if line.get_marker() == "o"]
    assert [p.get_xdata()[0] for p in points] == pytest.approx(list(of.loc[names[:4], "estimate"]))
    filled = [p.get_markerfacecolor() != "white" for p in points]
    assert filled == [bool(q < 0.05) for q in of.loc[names[:4], "q"]]
    assert filled[0]
    assert not filled[2]
    bars = [
        tuple(line.get_xdata()) for line in axes.lines if line.get_marker() == "None" and line.get_ydata()[0] > -0.5
    ]
    for name in names[:3]:
        assert tuple(of.loc[name, ["low", "high"]]) in bars
    assert not any(np.isnan(bar).any() for bar in bars)
    diamonds = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "D"]
    assert diamonds == pytest.approx(list(of.loc[names[:4], "partial"]))
    notes = {text.get_text() for text in axes.texts}
    assert "steps is constant" in notes
    assert any("fewer than three rows" in note for note in notes)


def test_captions_say_what_intervals_and_p_values_are(result, table):
    said = texts(plot_correlations(result)).replace("\n", " ")
    for fact in (
        "Spearman correlation",
        "over 24 rows",
        "95% interval, BCa bootstrap over rows",
        "false-discovery rate over 4 metrics",
        "partial correlation given loss",
        "almost: no interval",
    ):
        assert fact in said
    grouped = found_in(
        table, groups="base", controls=[], method="kendall", resamples=99, flatness=["random", "decades"]
    )
    said = texts(plot_correlations(grouped)).replace("\n", " ")
    for fact in (
        "Kendall's tau-b",
        "24 rows in 6 groups (base)",
        "jackknife over groups",
        "permutation within groups",
        "All metrics: only 6 groups",
    ):
        assert fact in said
    assert "Diamonds" not in said
    assert "Our words." in texts(plot_correlations(result, caption="Our words."))


def test_scatter_panels_have_the_rows_that_were_correlated(table):
    table = table.assign(random=table["random"].where(table.index != 7), loss=table["loss"].where(table.index != 9))
    result = found_in(table)
    figure = plot_correlation_scatter(result, table)
    assert len(figure.axes) == len(METRICS)
    panels = {axes.get_xlabel(): axes for axes in figure.axes}
    shown = np.concatenate([np.column_stack(line.get_data()) for line in panels["random"].lines])
    expected = table.drop(index=[7, 9])[["random", "forgetting"]].to_numpy()
    assert np.allclose(sorted(map(tuple, shown)), sorted(map(tuple, expected)))
    row = result.set_index("metric").loc["random"]
    assert len(shown) == row["n"] == 22
    title = panels["random"].get_title(loc="left")
    assert f"{row['estimate']:+.2f}".replace("-", "−") in title
    assert f"q = {row['q']:.3f}, n = 22" in title
    assert "steps is constant" in panels["steps"].get_title(loc="left")
    assert {name for name, axes in panels.items() if axes.get_xscale() == "log"} == {"decades"}
    assert len({axes.get_ylim() for axes in figure.axes}) == 1
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["adamw", "sam"]


def test_any_column_colours_and_what_is_not_given_is_grey(result, table):
    scatter = scatter_of(result, table.assign(lr=[1e-4, None, 3e-3] * 8), "lr")
    assert scatter.colors == ["0.0001", "0.003"]
    assert (scatter.of == -1).sum() == 8
    assert scatter_of(result, table.drop(columns="optimizer"), None).colors == []
    plot_correlation_scatter(result, table.drop(columns="optimizer"))
    with pytest.raises(InputError, match="no column 'absent'"):
        plot_correlation_scatter(result, table, color="absent")
    big = study(40)
    found = found_in(big)
    with pytest.raises(InputError, match="'forgetting' has 40 values"):
        plot_correlation_scatter(found, big, color="forgetting")
    with pytest.raises(InputError, match="no column 'decades'"):
        correlations_html(result, table.drop(columns="decades"))
    with pytest.raises(InputError, match="lack a column 'low'"):
        plot_correlations(result.drop(columns="low"))


@pytest.mark.parametrize("count", [1, 4, 40])
def test_one_to_forty_metrics_do_not_overlap(count):
    generator = np.random.default_rng(count)
    names = [f"adaptive_worst_case_number_{i}_of_the_old_data" for i in range(count)]
    table = pandas.DataFrame(generator.standard_normal((12, count + 1)), columns=[*names, "forgetting"])
    result = correlate(table, resampling=Resampling(99))
    figure = plot_correlations(result, table)
    figure.draw_without_rendering()
    assert len(figure.axes) == count + 1
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    for index, box in enumerate(boxes):
        assert figure.bbox.padded(1).containsx(box.x0)
        assert figure.bbox.padded(1).containsx(box.x1)
        assert box.count_overlaps([other.padded(-1) for other in boxes[index + 1 :]]) == 0


def test_result_read_back_from_csv_still_draws(result, table, tmp_path):
    result.to_csv(tmp_path / "correlate.csv", index=False)
    again = pandas.read_csv(tmp_path / "correlate.csv")
    assert [row["metric"] for row in forest_of(again).rows] == [row["metric"] for row in forest_of(result).rows]
    plot_correlations(again, table)
    correlations_html(again, table)


@pytest.mark.slow
def test_written_pictures_are_the_same_each_time(result, table, tmp_path):
    for folder in "ab":
        (tmp_path / folder).mkdir()
    first, second = (write_correlation_figures(result, table, tmp_path / folder) for folder in "ab")
    figures = [f"{name}.{suffix}" for name in ("forest", "scatter") for suffix in ("png", "pdf", "txt", "tex")]
    assert [path.name for path in first] == [*figures, "correlate.html"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


# --- the page -----------------------------------------------------------------------------------------------


def test_hover_names_checkpoints_and_numbers(result, table):
    forest = forest_plot(result, forest_of(result))
    estimates = [x for trace in forest.data if trace.name != "partial" for x in trace.x]
    assert sorted(estimates) == pytest.approx(sorted(result["estimate"].dropna()))
    figure = scatter_plot(result, table, scatter_of(result, table, None))
    assert [trace.name for trace in figure.data if trace.showlegend] == ["adamw", "sam"]
    said = " ".join(text for trace in figure.data if trace.xaxis == "x" for text in trace.text)
    for index in range(len(table)):
        assert f"<b>run-{index}</b><br>decades: {table['decades'][index]:.5g}" in said
    assert "optimizer: sam" in said


def evil(table):
    changed = table.rename(columns={"random": EVIL, "optimizer": f"o{EVIL}"})
    return changed.assign(checkpoint=EVIL, **{f"o{EVIL}": [EVIL, "sam"] * 12})


def test_page_is_self_contained_and_a_name_adds_no_element(table, tmp_path):
    def page(frame, name, color):
        return correlations_html(found_in(frame, flatness=[name, "steps"]), frame, color=color, title=name)

    plain, strange = page(table, "random", "optimizer"), page(evil(table), EVIL, f"o{EVIL}")
    assert Elements(strange).tags == Elements(plain).tags
    assert Elements(plain).loaded == ["#content"]
    assert escape(EVIL) in strange
    result = found_in(evil(table), flatness=[EVIL])
    plot_correlations(result, evil(table), color=f"o{EVIL}").savefig(tmp_path / "evil.pdf")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium found")
def test_browser_draws_both_plots_and_shows_names_literally(table, tmp_path):
    frame = evil(table)
    page = correlations_html(found_in(frame, flatness=[EVIL, "decades", "steps"]), frame, color=f"o{EVIL}", title=EVIL)
    hover = """
    setTimeout(() => {
      const plot = document.getElementById("plot-1-2");
      Plotly.Fx.hover(plot, [{curveNumber: 0, pointNumber: 0}]);
      told.append(plot.querySelector(".hoverlayer").textContent);
    }, 1500);"""
    dom = browse(with_script(page, hover), tmp_path)
    assert len(re.findall(r'class="plot js-plotly-plot"', dom)) == 2
    outside = re.sub(r"<script.*?</script>", "", dom, flags=re.DOTALL)
    assert not re.search(r"<img src=.?x|<a [^>]*example\.org", outside)
    assert "Share" not in outside  # plotly's button that sends the data away
    shown = [html.unescape(text) for text in re.findall(r">([^<>]+)<", outside)]
    assert EVIL in shown
    assert {"decades", "steps is constant", "sam"} <= set(shown)
    assert "ERROR" not in told(dom)
    assert EVIL[:60] in told(dom)  # the checkpoint's name in the hover label
    assert "decades" in told(dom)

"""Planted truths, scipy on the plain cases, and everything that must be said instead of a silent number."""

import json
from pathlib import Path

import numpy as np
import pandas
import pytest
from scipy import stats

import landscape
from landscape import InputError, MeasurementWarning, Resampling
from landscape.correlation import granulated_kendall
from landscape.correlation.statistics import partial_correlations


def correlate(table, *, resamples=9999, confidence=0.95, seed=0, **options):
    return landscape.correlate(table, resampling=Resampling(resamples, confidence, seed), **options)


def correlated(n, rho, generator):
    x = generator.standard_normal(n)
    return x, rho * x + np.sqrt(1 - rho**2) * generator.standard_normal(n)


def table_of(n=40, rho=0.6, seed=0, **columns):
    generator = np.random.default_rng(seed)
    x, y = correlated(n, rho, generator)
    return pandas.DataFrame({"flat": x, "forgetting": y, **columns})


@pytest.mark.parametrize(
    ("method", "function"),
    [("spearman", stats.spearmanr), ("pearson", stats.pearsonr), ("kendall", stats.kendalltau)],
)
def test_plain_cases_are_scipys(method, function):
    table = table_of()
    found = correlate(table, method=method, resamples=999).iloc[0]
    expected = function(table["flat"], table["forgetting"])
    assert found["estimate"] == pytest.approx(expected.statistic, rel=1e-12)
    # p is 0.15 for all three; of 999 permutations its standard deviation is 0.011
    assert abs(found["p"] - expected.pvalue) < 0.04
    assert found["low"] < found["estimate"] < found["high"]


@pytest.mark.slow
def test_intervals_cover_over_200_draws():
    """Nominal 95%: 190 +- 3 of 200; BCa at 30 rows covers 93 to 96%. Rejects intervals of one standard error (68%).

    By their mean width, which is 2 * 1.96 (1 - rho^2) / sqrt(n) to first order, it also rejects those half as wide
    and twice as wide.
    """
    generator = np.random.default_rng(0)
    covered, width = 0, 0.0
    for draw in range(200):
        x, y = correlated(30, 0.5, generator)
        found = correlate(pandas.DataFrame({"flat": x, "forgetting": y}), method="pearson", resamples=499, seed=draw)
        covered += found["low"][0] <= 0.5 <= found["high"][0]
        width += (found["high"][0] - found["low"][0]) / 200
    assert covered >= 180
    assert width == pytest.approx(2 * 1.96 * (1 - 0.5**2) / 30**0.5, rel=0.15)


def clustered(groups, members, generator, shift=2.0):
    """No link within groups; both sides follow the group."""
    level = generator.standard_normal(groups).repeat(members) * shift
    rows = groups * members
    return pandas.DataFrame(
        {
            "flat": level + generator.standard_normal(rows),
            "forgetting": level + generator.standard_normal(rows),
            "base": np.arange(groups).repeat(members),
        }
    )


@pytest.mark.slow
def test_groups_keep_the_error_rate_that_a_plain_p_value_loses():
    """The same tables, where there is nothing to find within groups: a plain p-value alarms in half of them."""
    generator = np.random.default_rng(3)
    plain = grouped = 0
    for draw in range(120):
        table = clustered(8, 6, generator)
        plain += correlate(table, flatness=["flat"], resamples=199, seed=draw)["p"][0] < 0.05
        grouped += correlate(table, flatness=["flat"], groups="base", resamples=199, seed=draw)["p"][0] < 0.05
    assert plain > 60  # the groups alone correlate both sides
    assert grouped <= 13  # 5% of 120 is 6, with a standard deviation of 2.4


def test_simpsons_paradox_is_visible():
    generator = np.random.default_rng(1)
    level = np.arange(6).repeat(8)
    inner = generator.standard_normal(48)
    table = pandas.DataFrame(
        {
            "flat": -5.0 * level + inner,
            "forgetting": 5.0 * level + inner + 0.1 * generator.standard_normal(48),
            "base": level,
        }
    )
    found = correlate(table, groups="base", resamples=199).iloc[0]
    assert found["estimate"] < -0.9
    assert found["within"] > 0.8
    assert -1 <= found["logo_low"] <= found["logo_high"] < -0.8
    assert "only 6 groups" in found["note"]


def test_a_metric_of_the_base_is_tested_by_permuting_bases():
    generator = np.random.default_rng(2)
    value = generator.standard_normal(10)
    table = pandas.DataFrame(
        {
            "flat": value.repeat(4),
            "forgetting": value.repeat(4) + 0.3 * generator.standard_normal(40),
            "base": np.arange(10).repeat(4),
        }
    )
    found = correlate(table, groups="base", resamples=999).iloc[0]
    assert "p permutes groups" in found["note"]
    assert found["p"] < 0.02


@pytest.mark.parametrize("method", ["pearson", "spearman"])
def test_partial_correlation_removes_a_common_cause(method):
    generator = np.random.default_rng(0)
    cause = generator.standard_normal(400)
    table = pandas.DataFrame(
        {
            "flat": cause + 0.5 * generator.standard_normal(400),
            "forgetting": cause + 0.5 * generator.standard_normal(400),
            "loss": cause,
        }
    )
    found = correlate(table, flatness=["flat"], controls=["loss"], method=method, resamples=199).iloc[0]
    assert found["estimate"] > 0.7
    assert abs(found["partial"]) < 0.15  # three standard errors of a zero correlation over 400 rows
    assert found["partial_p"] > 0.01


def test_partial_pearson_is_the_textbook_formula():
    table = table_of(60, loss=np.random.default_rng(9).standard_normal(60))
    r = np.corrcoef(table[["flat", "forgetting", "loss"]].to_numpy().T)
    expected = (r[0, 1] - r[0, 2] * r[1, 2]) / np.sqrt((1 - r[0, 2] ** 2) * (1 - r[1, 2] ** 2))
    found = correlate(table, flatness=["flat"], controls=["loss"], method="pearson", resamples=99)["partial"][0]
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.slow
def test_false_discoveries_are_controlled_across_metrics():
    """Ten metrics without any link. Rejects p-values that are not adjusted: 40% of the tables have one below 5%."""
    generator = np.random.default_rng(5)
    false = unadjusted = 0
    for draw in range(40):
        table = pandas.DataFrame(generator.standard_normal((25, 11)), columns=[*"abcdefghij", "forgetting"])
        found = correlate(table, resamples=199, seed=draw)
        assert (found["q"] >= found["p"] - 1e-12).all()
        false += bool((found["q"] < 0.05).any())
        unadjusted += bool((found["p"] < 0.05).any())
    assert false <= 6  # 5% of 40 is 2, with a standard deviation of 1.4
    assert unadjusted > 10, "the test can tell"


def test_partial_q_values_are_those_of_the_partial_p_values():
    """Benjamini and Hochberg 1995 by hand: the k-th smallest of m times m / k, made monotone from the largest."""
    generator = np.random.default_rng(6)
    table = pandas.DataFrame(generator.standard_normal((40, 6)), columns=[*"abcd", "lr", "forgetting"])
    table["a"] += 3 * table["forgetting"]
    table["d"] = 1.0  # has no p-value, and is none of the m
    with_note = correlate(table, flatness=[*"abcd"], controls=["lr"], resamples=199).set_index("metric")
    p = with_note.loc[[*"abc"], "partial_p"].sort_values()
    expected = np.minimum.accumulate((p * 3 / np.arange(1, 4))[::-1])[::-1]
    np.testing.assert_allclose(with_note.loc[p.index, "partial_q"], expected, rtol=1e-12)
    assert np.isnan(with_note.loc["d", "partial_q"])
    assert with_note.loc["a", "partial_q"] < 0.05


def test_granulated_kendall_by_hand():
    table = pandas.DataFrame(
        {
            "lr": [1, 2, 1, 2],
            "optimizer": ["a", "a", "b", "b"],
            "flat": [1.0, 2.0, 2.0, 1.0],
            "forgetting": [1.0, 2.0, 3.0, 4.0],
        }
    )
    # along lr: tau +1 for a, -1 for b; along optimizer: +1 at lr 1, -1 at lr 2
    assert granulated_kendall(table, "flat", "forgetting", ["lr", "optimizer"]) == 0
    assert granulated_kendall(table.iloc[:2], "flat", "forgetting", ["lr", "optimizer"]) == 1
    found = correlate(table, flatness=["flat"], hyperparameters=["lr", "optimizer"], resamples=99)
    assert found["granulated"][0] == 0


def test_what_cannot_be_said_is_said():
    table = table_of(12, constant=np.ones(12), rank=np.arange(12) // 4, broken=[np.nan, np.inf] + [1.0, 2, 3, 4, 5] * 2)
    with pytest.warns(MeasurementWarning, match="broken"):
        found = correlate(table, resamples=199).set_index("metric")
    assert np.isnan(found.loc["constant", "estimate"])
    assert "constant" in found.loc["constant", "note"]
    assert np.isnan(found.loc["constant", "q"])
    assert found.loc["broken", "n"] == 10
    assert "2 rows" in found.loc["broken", "note"]
    ties = stats.spearmanr(table["rank"], table["forgetting"]).statistic
    assert found.loc["rank", "estimate"] == pytest.approx(ties)
    few = correlate(table.iloc[:3], flatness=["flat"], resamples=199).iloc[0]
    assert "only 3 rows" in few["note"]
    assert few["p"] >= 0.3  # no arrangement of three rows is rarer than one in three, both sides counted
    two = correlate(table.iloc[:2], flatness=["flat"], resamples=199).iloc[0]
    assert np.isnan(two["estimate"])


def test_partial_correlation_is_the_planted_one():
    """x and y share a cause, and given it correlate by 0.6: (1 - 0.6^2) / sqrt(1000) = 0.02 is a standard error."""
    generator = np.random.default_rng(4)
    cause = generator.standard_normal(1000)
    x, y = correlated(1000, 0.6, generator)
    table = pandas.DataFrame({"flat": x - 3 * cause, "forgetting": y + 3 * cause, "lr": 1e-5 * cause})
    found = correlate(table, flatness=["flat"], controls=["lr"], method="pearson", resamples=99).iloc[0]
    assert found["estimate"] < -0.7
    assert found["partial"] == pytest.approx(0.6, abs=0.06)
    assert found["partial_p"] <= 0.02  # the least that 99 permutations give


@pytest.mark.slow
def test_the_interval_of_partial_covers_the_planted_one():
    """Nominal 90%: of 100 draws 90 +- 3; the bound is three standard deviations below, two more for 40 rows."""
    generator = np.random.default_rng(7)
    covered = 0
    for draw in range(100):
        x, y = correlated(40, 0.4, generator)
        cause = generator.standard_normal(40)
        table = pandas.DataFrame({"flat": x + 2 * cause, "forgetting": y - 2 * cause, "lr": cause})
        found = correlate(
            table, flatness=["flat"], controls=["lr"], method="pearson", confidence=0.9, resamples=199, seed=draw
        ).iloc[0]
        covered += found["partial_low"] <= 0.4 <= found["partial_high"]
        assert found["partial_low"] <= found["partial"] <= found["partial_high"]
    assert 76 <= covered <= 98


@pytest.mark.parametrize("method", ["pearson", "spearman"])
def test_partial_of_resamples_is_that_of_the_table(method):
    generator = np.random.default_rng(8)
    x, y, a, b = generator.standard_normal((4, 30))
    table = pandas.DataFrame({"flat": x, "forgetting": y + x + a, "a": a, "b": 1e-6 * b})
    found = correlate(table, flatness=["flat"], controls=["a", "b"], method=method, resamples=99)["partial"][0]
    columns = [table[name].to_numpy()[None] for name in ("flat", "forgetting")]
    given = table[["a", "b"]].to_numpy()[None]
    assert partial_correlations(*columns, given, method == "spearman")[0] == pytest.approx(found, rel=1e-10)


def test_columns_of_landscape_measure_that_are_no_metric_are_left_out():
    columns = ["rho", "lr", "seed", "steps", "loss_after_old", "accuracy_loss_old", "kl_new", "trace_old", "forgetting"]
    table = pandas.DataFrame(np.random.default_rng(0).standard_normal((12, 9)), columns=columns).assign(
        optimizer=np.nan
    )
    assert list(correlate(table, resamples=99)["metric"]) == ["kl_new", "trace_old"]
    other = correlate(table, forgetting="accuracy_loss_old", resamples=99)  # the first outcome in another form
    assert list(other["metric"]) == ["kl_new", "trace_old"]
    named = table.assign(name=range(100, 112), base=7, digest=range(12))  # of folders that are called by their step
    assert list(correlate(named, resamples=99)["metric"]) == ["kl_new", "trace_old"]


def false_alarms(make, draws, column="p", **options):
    """How often a p-value of `flat` is at most 0.05 over tables where there is nothing to find."""
    generator = np.random.default_rng(0)
    options = {"flatness": ["flat"], "resamples": 99} | options
    return sum(correlate(make(generator), seed=draw, **options)[column][0] <= 0.05 for draw in range(draws))


# The bounds below are three standard deviations above 5%: 19 of 200, 11 of 100.


@pytest.mark.slow
def test_partial_p_keeps_its_level_with_few_rows_and_many_controls():
    """Residuals permuted and correlated without another projection raise 9% of alarms here."""

    def make(generator):
        return pandas.DataFrame(generator.standard_normal((12, 5)), columns=["flat", "forgetting", "a", "b", "c"])

    assert false_alarms(make, 200, "partial_p", controls=["a", "b", "c"], method="pearson") <= 19


@pytest.mark.slow
def test_partial_p_keeps_its_level_where_a_control_goes_another_way_within_groups():
    """One slope for all rows leaves the control's share within groups in both residuals: 15% of alarms."""

    def make(generator):
        level = 2 * generator.standard_normal(8).repeat(6)
        z, x, y = generator.standard_normal((3, 48))
        columns = {"flat": z + x - 4 * level, "forgetting": z + y + 4 * level, "z": z + 5 * level}
        return pandas.DataFrame(columns | {"base": np.arange(8).repeat(6)})

    options = {"controls": ["z"], "groups": "base", "method": "pearson"}
    assert false_alarms(make, 200, "partial_p", **options) <= 19


@pytest.mark.slow
def test_partial_p_keeps_its_level_where_groups_spread_differently():
    """Two noisy groups of eight. Rejects permuting what is left across groups: 30% of alarms."""

    def make(generator):
        spread, level = np.array([0.2] * 6 + [3.0] * 2).repeat(6), 2 * generator.standard_normal(8).repeat(6)
        z, x, y = generator.standard_normal((3, 48))
        columns = {"flat": z + spread * x - 4 * level, "forgetting": z + spread * y + 4 * level, "z": z + 5 * level}
        return pandas.DataFrame(columns | {"base": np.arange(8).repeat(6)})

    options = {"controls": ["z"], "groups": "base", "method": "pearson"}
    assert false_alarms(make, 200, "partial_p", **options) <= 19


@pytest.mark.slow
def test_clustered_p_keeps_its_level_for_ties_and_groups_of_unequal_size():
    """Rejects permuting rows whatever their group, which alarms in half of the tables."""

    def make(generator):
        table = clustered(8, 6, generator).round(0)
        return table.drop(index=[0, 1, 2, 3, 4, 6, 7, 20])  # the first group keeps one row

    assert false_alarms(make, 100, groups="base") <= 11


def test_an_outcome_of_the_base_is_tested_by_permuting_bases():
    """Within bases it does not move, and no permutation there could find anything."""

    def make(generator):
        outcome = generator.standard_normal(12).repeat(4)
        flat = generator.standard_normal(12).repeat(4) + generator.standard_normal(48)
        return pandas.DataFrame({"flat": flat, "forgetting": outcome, "base": np.arange(12).repeat(4)})

    assert false_alarms(make, 100, groups="base") <= 11
    table = make(np.random.default_rng(1))
    table["flat"] = table["forgetting"] + 0.3 * table["flat"]
    found = correlate(table, groups="base", resamples=999).iloc[0]
    assert found["p"] < 0.01
    assert "p permutes groups" in found["note"]


@pytest.mark.slow
def test_intervals_over_groups_cover_over_200_draws():
    """24 groups whose level correlates by 0.5, members by 0.5 too: the truth is 0.5 whatever the shares.

    Nominal 190 of 200; the percentile bootstrap over 24 groups covers 92 to 97%. Rejects resampling rows whatever
    their group, whose intervals do not know that the members of a group come together.
    """
    generator = np.random.default_rng(7)
    covered = of_rows = 0
    for draw in range(200):
        (a, b), (c, d) = correlated(24, 0.5, generator), correlated(96, 0.5, generator)
        table = pandas.DataFrame({"flat": a.repeat(4) + 0.8 * c, "forgetting": b.repeat(4) + 0.8 * d})
        table["base"] = np.arange(24).repeat(4)
        options = {"flatness": ["flat"], "method": "pearson", "resamples": 299, "seed": draw}
        found, alone = correlate(table, groups="base", **options), correlate(table, **options)
        covered += found["low"][0] <= 0.5 <= found["high"][0]
        of_rows += alone["low"][0] <= 0.5 <= alone["high"][0]
    assert covered >= 180
    assert of_rows < 170, "the test can tell"


def test_discoveries_among_many_nulls_are_mostly_true():
    """5 of 20 metrics are linked: on average at most 5% of what q calls found may be false."""
    generator = np.random.default_rng(6)
    shares, found_true = [], 0
    for draw in range(10):
        y = generator.standard_normal(24)
        metrics = generator.standard_normal((24, 20))
        metrics[:, :5] += 2 * y[:, None]
        table = pandas.DataFrame(metrics).add_prefix("m").assign(forgetting=y)
        called = (correlate(table, method="pearson", resamples=399, seed=draw)["q"] < 0.05).to_numpy()
        shares.append(called[5:].sum() / max(called.sum(), 1))
        found_true += called[:5].sum()
    assert np.mean(shares) <= 0.12  # 0.04 expected; the standard error over 10 draws is about 0.028
    assert found_true > 0.9 * 50


def test_few_rows_have_the_exact_p_of_all_arrangements():
    table = pandas.DataFrame({"flat": [1.0, 2, 3, 4, 5], "forgetting": [1.0, 2, 3, 4, 5]})
    found = correlate(table).iloc[0]
    assert found["p"] == pytest.approx(2 / 120)
    assert np.isnan(found["low"])
    assert "no interval" in found["note"]
    assert "p cannot be less than 0.33" in correlate(table.iloc[:3]).iloc[0]["note"]


def test_groups_without_a_name_and_few_groups_are_said():
    table = clustered(6, 4, np.random.default_rng(0))
    table["base"] = table["base"].astype(object).where(table.index != 5)
    with pytest.warns(MeasurementWarning, match="1 row without a 'base' left out"):
        found = correlate(table, groups="base", resamples=99).iloc[0]
    assert (found["n"], found["n_groups"]) == (23, 6)
    assert "1 row without a 'base' left out" in found["note"]
    single = correlate(clustered(12, 1, np.random.default_rng(0)), flatness=["flat"], groups="base", resamples=99)
    assert "p permutes groups" in single["note"][0]
    assert np.isnan(single["within"][0])
    two = correlate(table.iloc[-8:], groups="base", resamples=99).iloc[0]
    assert np.isnan([two["low"], two["high"]]).all()
    assert "no interval: fewer than three groups" in two["note"]


def test_p_of_the_other_sign_is_said():
    generator = np.random.default_rng(1)
    level, inner = np.arange(6).repeat(8), generator.standard_normal(48)
    table = pandas.DataFrame({"flat": inner - 5.0 * level, "forgetting": inner + 5.0 * level, "base": level})
    found = correlate(table, groups="base", resamples=199).iloc[0]
    assert found["estimate"] < -0.9
    assert found["p"] < 0.05
    assert "whose sign is the other" in found["note"]


def test_a_whole_number_beyond_all_floats_is_no_number(tmp_path):
    """Read from CSV beside a text, Python's integer has no limit, and pandas ends in an OverflowError."""
    rows = [{"forgetting": i, "flat": entry} for i, entry in enumerate([10**400, "x", 3, 1, 2, 5, 4, 7])]
    with pytest.raises(InputError, match="does not hold numbers but '1000"):
        landscape.correlate(pandas.DataFrame(rows), flatness=["flat"])


def test_columns_of_odd_kinds():
    plain = table_of(20)
    text = plain.assign(flat=plain["flat"].map(repr))
    assert correlate(text, resamples=99)["estimate"][0] == correlate(plain, resamples=99)["estimate"][0]
    broken = plain.assign(trace=["diverged", *map(str, plain["flat"][1:])], name="x", done=plain["flat"] > 0)
    with pytest.warns(MeasurementWarning, match="'trace' is left out: it holds 'diverged'"):
        assert list(correlate(broken, resamples=99)["metric"]) == ["flat"]
    with pytest.raises(InputError, match="does not hold numbers but 'diverged'"):
        correlate(broken, flatness=["trace"])
    yes = correlate(broken, flatness=["done"], resamples=99).iloc[0]
    assert yes["estimate"] == pytest.approx(stats.spearmanr(broken["done"], plain["forgetting"]).statistic)
    missing = plain.assign(whole=pandas.array([None, *range(19)], dtype="Int64"))
    with pytest.warns(MeasurementWarning, match="whole: 1 row"):
        assert correlate(missing, resamples=99).set_index("metric").loc["whole", "n"] == 19
    rounding = correlate(plain.assign(flat=3.0 + 1e-15 * np.arange(20)), resamples=99).iloc[0]
    assert np.isnan(rounding["estimate"])  # ranks of rounding errors are no measurement
    twins = correlate(plain.assign(again=plain["flat"]), resamples=99)
    assert "same numbers as flat" in twins["note"][1]
    tiny = plain.assign(flat=1e-20 * plain["flat"])
    same = correlate(tiny.assign(c=tiny["flat"]), flatness=["flat"], controls=["c"], resamples=99).iloc[0]
    assert np.isnan(same["partial"])
    assert "the controls explain everything" in same["note"]
    huge = correlate(
        table_of(20, c=np.arange(20.0)).assign(flat=lambda t: 1e18 * t["flat"]), controls=["c"], resamples=99
    )
    assert np.isfinite(huge["partial"][0])


def test_csv_files_and_seeds(tmp_path):
    path = tmp_path / "table.csv"
    table_of().assign(name="x").to_csv(path, index=False)
    one, two = (correlate(path, resamples=199, seed=4) for _ in range(2))
    pandas.testing.assert_frame_equal(one, two)
    assert list(one["metric"]) == ["flat"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"flatness": ["absent"]}, "absent"),
        ({"forgetting": "lost"}, "lost"),
        ({"method": "cosine"}, "cosine"),
        ({"confidence": 1.0}, "confidence"),
        ({"resamples": 3}, "resamples"),
        ({"flatness": ["name"]}, "does not hold numbers"),
        ({"method": "kendall", "controls": ["flat"]}, "kendall"),
        ({"flatness": []}, "no numeric column"),
        ({"flatness": ["flat", "flat"]}, "'flat' is asked for twice"),
        ({"flatness": ["forgetting"]}, "'forgetting' is asked for twice"),
        ({"flatness": ["flat"], "controls": ["flat"]}, "'flat' is asked for twice"),
        ({"flatness": ["flat"], "groups": "flat"}, "'flat' is the groups"),
        ({"flatness": ["flat"], "groups": "forgetting"}, "'forgetting' is the groups"),
    ],
)
def test_bad_requests_are_refused(options, said):
    with pytest.raises(InputError, match=said):
        correlate(table_of().assign(name="x"), **options)


def test_a_file_that_is_no_table_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        correlate(tmp_path / "absent.csv")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(InputError, match="cannot be read"):
        correlate(tmp_path / "empty.csv")
    double = pandas.DataFrame(np.ones((4, 3)), columns=["flat", "flat", "forgetting"])
    with pytest.raises(InputError, match="more than one column 'flat'"):
        correlate(double)


def test_the_command_writes_table_plots_and_page(run, tmp_path):
    table_of(24, optimizer=["adamw", "sam"] * 12, base=[f"b{i // 3}" for i in range(24)]).to_csv("table.csv")
    command = ("correlate", "table.csv", "--flatness", "flat", "--groups", "base", "--resamples", "199", "-o", "out")
    code, out, err = run(*command)
    assert code == 0, err
    assert "flat" in out
    names = {path.name for path in Path("out").iterdir()}
    plots = {f"{name}.{suffix}" for name in ("forest", "scatter") for suffix in ("png", "pdf", "txt", "tex")}
    plots.add("correlate.html")
    assert names == plots | {"correlate.csv", "summary.json", "settings.json"}
    written = pandas.read_csv("out/correlate.csv")
    expected = correlate("table.csv", flatness=["flat"], groups="base", resamples=199)
    assert written["p"][0] == expected["p"][0]
    assert json.loads(run(*command, "--json", "--color", "base")[1])["rows"][0]["metric"] == "flat"
    table_of(3).to_csv("few.csv")
    code, out, err = run("correlate", "few.csv", "--flatness", "flat", "--resamples", "199", "-o", "few")
    assert code == 0, err
    assert "no interval" in out
    assert "nan" not in out
    code, _, err = run(*command, "--seed", "1")
    assert code == 2
    assert "other settings (seed differ)" in err
    code, _, err = run(*command[:-1], "new", "--color", "absent")
    assert code == 2
    assert "'absent'" in err
    assert not Path("new").exists()
    table_of(24, seed=1, base=1).to_csv("table.csv")
    code, _, err = run(*command)
    assert code == 2
    assert "digest" in err  # another table is other settings


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("flat,forgetting,flat\n1,2,3\n4,5,6\n", "has more than one column 'flat'"),
        # pandas would make the first column an index, and every name would stand over its neighbour's numbers.
        ("flat,forgetting\n1,2,3\n4,5,6\n", "line 2 has 3 fields, but 2 columns"),
        ("flat,forgetting\n1,2\n\n4\n", "line 4 has 1 fields, but 2 columns"),
        ("flat,forgetting\n1,2\x00\n", "holds a NUL character"),
        ('flat,forgetting\n"1,2\n', "line 2 has 1 fields|cannot be read as"),
    ],
)
def test_a_table_whose_columns_are_not_certain_is_refused(tmp_path, text, words):
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=words):
        correlate(path)


def test_a_frame_with_a_column_twice_is_refused():
    frame = table_of()
    twice = pandas.concat([frame, frame[["flat"]]], axis=1)
    with pytest.raises(InputError, match="the table has more than one column 'flat'"):
        correlate(twice)

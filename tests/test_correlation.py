"""Planted truths, scipy on the plain cases, and everything that must be said instead of a silent number."""

import numpy as np
import pandas
import pytest
from scipy import stats

from landscape import InputError, MeasurementWarning, correlate
from landscape.correlation import granulated_kendall


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


def test_intervals_cover_over_200_draws():
    generator = np.random.default_rng(0)
    covered = 0
    for draw in range(200):
        x, y = correlated(30, 0.5, generator)
        found = correlate(pandas.DataFrame({"flat": x, "forgetting": y}), method="pearson", resamples=499, seed=draw)
        covered += found["low"][0] <= 0.5 <= found["high"][0]
    assert covered >= 180  # nominal 95% of 200 is 190; BCa at 30 rows covers 93 to 96%


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


def test_groups_keep_the_error_rate_that_a_plain_p_value_loses():
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


def test_false_discoveries_are_controlled_across_metrics():
    generator = np.random.default_rng(5)
    false = 0
    for draw in range(40):
        table = pandas.DataFrame(generator.standard_normal((25, 11)), columns=[*"abcdefghij", "forgetting"])
        found = correlate(table, resamples=199, seed=draw)
        assert (found["q"] >= found["p"] - 1e-12).all()
        false += bool((found["q"] < 0.05).any())
    assert false <= 6  # 5% of 40 is 2, with a standard deviation of 1.4


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

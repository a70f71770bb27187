"""Linear mixed models against closed forms of balanced designs, and their rate of false positives by simulation."""

import json
import sys

import numpy as np
import pandas
import pytest
from scipy import stats

import landscape
from landscape import InputError

pytest.importorskip("statsmodels")

TOP, BASE, LR = np.arange(6).repeat(16), np.arange(24).repeat(4), np.tile(np.arange(4), 24)


def ranked(values):
    """Ranks in units of their standard deviation."""
    ranks = stats.rankdata(values)
    return (ranks - ranks.mean()) / ranks.std()


def noise(generator, *parts):
    """Normal numbers of 96 rows: pairs of a number of equal groups and a share of the variance."""
    return sum(np.sqrt(share) * generator.standard_normal(n).repeat(96 // n) for n, share in parts)


def table_of(x, y, **columns):
    columns = {"recipe": TOP, "base": BASE, "lr": LR} | columns
    return pandas.DataFrame({"flat": x, "forgetting": y} | columns)


def only_row(table, **options):
    return landscape.mixed_models(table, flatness=["flat"], **options).iloc[0]


def test_a_metric_with_one_value_per_group_is_a_regression_of_group_means():
    """In a balanced design the slope and its error are those of the 24 means, exactly (Searle et al. 1992, chapter 4).

    The tolerance is that of the optimizer. Rows taken as independent have a standard error half as large or less.
    """
    generator = np.random.default_rng(0)
    x, y = noise(generator, (24, 1)), noise(generator, (24, 0.7), (96, 0.3))
    row = only_row(table_of(x, y), groups="base")
    means = [ranked(v).reshape(24, 4).mean(axis=1) for v in (x, y)]
    line = stats.linregress(*means)
    reach = stats.t.ppf(0.975, 23) * line.stderr
    assert (row["slope"], row["low"], row["high"]) == pytest.approx(
        (line.slope, line.slope - reach, line.slope + reach), abs=2e-3
    )
    rows = stats.linregress(ranked(x), ranked(y))
    assert rows.stderr < 0.6 * line.stderr
    assert row["note"] == "one slope for all groups"


def test_a_metric_that_varies_within_groups_alone_is_a_regression_within_them():
    """Groups of equal means say nothing of the slope: it is that of deviations, whatever the groups' own shifts are."""
    generator = np.random.default_rng(1)
    x = np.concatenate([generator.permutation(4) for _ in range(24)]).astype(float)
    y = x + noise(generator, (24, 20), (96, 1))
    row = only_row(table_of(x, y), groups="base")
    shifted = ranked(y) - ranked(y).reshape(24, 4).mean(axis=1).repeat(4)
    within = float(ranked(x) @ shifted / (ranked(x) @ ranked(x)))
    assert row["slope"] == pytest.approx(within, abs=2e-3)
    rows = stats.linregress(ranked(x), ranked(y))
    assert row["high"] - row["low"] < 0.7 * 2 * stats.t.ppf(0.975, 94) * rows.stderr


def test_what_factors_and_controls_make_is_no_slope():
    generator = np.random.default_rng(2)
    control = generator.standard_normal(96)
    x, y = (gain * LR + 3 * control + noise(generator, (24, 0.5), (96, 1)) for gain in (4, 6))
    table = table_of(x, y, control=control)
    alone = only_row(table, groups="recipe/base")
    assert alone["low"] > 0.5
    given = only_row(table, groups="recipe/base", factors=["lr"], controls=["control"])
    assert given["low"] < 0 < given["high"]
    assert given["n_groups"] == 6


@pytest.mark.slow
@pytest.mark.parametrize("shares", [((6, 0.4), (24, 0.4), (96, 0.2)), ((24, 0.3), (96, 0.7))])
def test_intervals_miss_no_more_than_they_say(shares):
    """Of 150 tables without a link, 5% are 7.5 with a standard deviation of 2.7; three of them above is 15.5.

    Normal quantiles of rows taken as independent find a link in more than 30% of the first kind.
    """
    generator = np.random.default_rng(3)
    groups = "recipe/base" if len(shares) == 3 else "base"
    tables = [table_of(LR + noise(generator, *shares), LR + noise(generator, *shares)) for _ in range(150)]
    found = [only_row(table, groups=groups, factors=["lr"])["p"] <= 0.05 for table in tables]
    assert sum(found) <= 15
    if len(shares) == 3:
        plain = [stats.linregress(ranked(t["flat"] - LR), ranked(t["forgetting"] - LR)).pvalue <= 0.05 for t in tables]
        assert np.mean(plain) > 0.3


def test_slopes_that_differ_between_groups_widen_the_interval():
    generator = np.random.default_rng(4)
    x = noise(generator, (96, 1))
    steep = np.array([3, -3, 3, -3, 3, 1.0])[TOP]
    same, differing = (only_row(table_of(x, slope * x + noise(generator, (96, 1))), groups="recipe")
                       for slope in (1.0, steep))  # fmt: skip
    assert same["low"] > 0
    assert differing["low"] < 0 < differing["high"]
    assert differing["high"] - differing["low"] > 3 * (same["high"] - same["low"])


def test_tables_in_which_a_slope_means_nothing_get_none():
    generator = np.random.default_rng(5)
    x = noise(generator, (96, 1))
    copies = only_row(table_of(x, noise(generator, (24, 1))), groups="recipe/base")
    assert np.isnan([copies["slope"], copies["p"]]).all()
    assert "one value in each of the narrowest groups" in copies["note"]
    made = only_row(table_of(LR, x), groups="base", factors=["lr"])
    assert np.isnan(made["slope"])
    assert "nothing is left" in made["note"]


def test_wrong_input_is_refused(monkeypatch):
    table = table_of(*np.random.default_rng(6).standard_normal((2, 96)))
    with pytest.raises(InputError, match=r"no column 'bse'.*base"):
        only_row(table, groups="bse")
    with pytest.raises(InputError, match="at least 3"):
        only_row(table[table["recipe"] < 2], groups="recipe")
    with pytest.raises(InputError, match="is a factor"):
        only_row(table, groups="base", factors=["flat"])
    with pytest.raises(InputError, match="confidence=95"):
        only_row(table, groups="base", confidence=95)
    monkeypatch.setitem(sys.modules, "statsmodels", None)
    with pytest.raises(InputError, match=r"pip install 'landscape-lm\[mixed\]'"):
        only_row(table, groups="base")


def test_the_command_prints_and_keeps_the_models(run, tmp_path):
    generator = np.random.default_rng(7)
    x = generator.standard_normal(96)
    table_of(x, x + generator.standard_normal(96)).to_csv("table.csv", index=False)
    options = ("table.csv", "--flatness", "flat", "--resamples", "199", "--mixed", "-o", "out")
    code, out, err = run("correlate", *options, "--groups", "recipe/base", "--factor", "lr")
    assert code == 0, err
    assert "slope in a mixed model" in out
    expected = landscape.mixed_models("table.csv", flatness=["flat"], groups="recipe/base", factors=["lr"])
    pandas.testing.assert_frame_equal(pandas.read_csv("out/mixed.csv", keep_default_na=False), expected)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["mixed"] == expected.to_dict("records")
    code, _, err = run("correlate", *options)
    assert code == 2
    assert "--mixed needs --groups" in err

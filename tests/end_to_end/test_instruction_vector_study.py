"""The verdicts and the figure of the experiment on instruction vectors, on rows in which the truth was planted."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest
from scipy import stats

ROOT = Path(__file__).parents[2]
LISTS = ("a", "b", "c", "d", "e", "f")
SPREAD = np.array([-0.02, 0.01, 0.0, 0.02, -0.01, 0.0])  # between lists, around the planted means

NO_CONTROL = pandas.DataFrame()
# Some planted differences are the same for all lists, which scipy's t test says.
pytestmark = pytest.mark.filterwarnings("ignore:Precision loss")


@pytest.fixture(scope="module")
def scripts():
    """The modules of the verdicts and of the figure."""
    for folder in ("analyses", "figures"):
        sys.path.insert(0, str(ROOT / folder))
    import instruction_vectors_results

    del sys.path[:2]
    sys.path.insert(0, str(ROOT))
    from figures import instruction_vectors

    del sys.path[0]
    return instruction_vectors_results, instruction_vectors


def rows_of(method, lost, with_base, with_random=0.0, learned=2.0, rate="first"):
    """A row for each list; lists differ by SPREAD, in an order of its own for each column and method."""
    means = {
        "few_shot_lost": lost, "zero_shot_lost": 0.0, "effect_lost": lost, "cosine": 1 - lost, "overlap": 0.8,
        **{f"{s}_gained_with_{v}": g for s in ("few_shot", "zero_shot")
           for v, g in (("base", with_base), ("random", with_random), ("other_task", 0.0))},
    }  # fmt: skip
    rows = []
    for index, name in enumerate(LISTS):
        row = {"kind": "tuned", "rate": rate, "method": method, "list": name, "learned": learned}
        row |= {"overlap_again": 0.9, "overlap_random": 0.04}
        for place, (column, mean) in enumerate(means.items()):
            value = mean + float(np.roll(SPREAD, place + len(method))[index])
            row |= {column: value, f"{column}_low": value - 0.1, f"{column}_high": value + 0.1}
        rows.append(row)
    return rows


def planted():
    """AdamW loses 30 points, of which the vector brings 25 back; guided training keeps them; LoRA's stay lost."""
    return [*rows_of("adamw", 0.3, 0.25), *rows_of("guided", 0.0, 0.0), *rows_of("lora", 0.3, 0.0)]


def test_verdicts_are_those_that_were_planted_and_each_is_corrected_for_nine_looks(scripts):
    """Against scipy's t test on the differences. Without the correction p would be up to nine times smaller."""
    results, _ = scripts
    tuned = pandas.DataFrame(planted())
    found = results.results_of(tuned, 6, pandas.DataFrame(rows_of("control", 0.0, 0.0)))
    looks = {(each["question"], each["method"]): each for each in found["looks"]}
    assert len(looks) == 9
    own = tuned[tuned["method"] == "adamw"]
    test = stats.ttest_1samp(own["few_shot_gained_with_base"] - own["few_shot_gained_with_random"], 0)
    back = looks["brought back", "adamw"]
    assert (back["low"], back["high"], back["p"]) == pytest.approx((*test.confidence_interval(), test.pvalue))
    known = [each for each in looks.values() if each["p"] == each["p"]]
    smallest = min(known, key=lambda each: each["p"])
    assert smallest["p_holm"] == pytest.approx(9 * smallest["p"])  # those that are not there yet count as well
    said = results.recovery_verdict(found)
    assert "adamw: for" in said
    assert "guided: its loss is not shown (corrected p 1), so nothing follows" in said
    assert "lora: against" in said
    assert "sam: not finished" in said
    assert results.guided_verdict(found) == "For."


@pytest.mark.parametrize(
    ("guided", "learned", "words"),
    [
        (0.0, 2.0, "For."),
        (0.0, 1.5, "It forgets less, and learned 0.500 nats less: not for."),
        (0.29, 2.0, "Against: what it keeps is less than a quarter of what AdamW loses."),
        (0.23, 2.0, "For."),  # seven points of thirty are evidence, though less than a quarter
        (0.6, 2.0, "Against: it forgets more."),
    ],
)
def test_guided_training_is_judged_by_what_it_keeps_and_what_it_learned(scripts, guided, learned, words):
    """The interval of a mean over lists is about 2 points to each side: planted means are apart by more."""
    results, _ = scripts
    rows = [*rows_of("adamw", 0.3, 0.0), *rows_of("guided", guided, 0.0, learned=learned)]
    assert results.guided_verdict(results.results_of(pandas.DataFrame(rows), 6, NO_CONTROL)) == words


def test_better_than_harmful_random_vectors_is_not_brought_back(scripts):
    """Random vectors cost 40 points and the base's none: the difference is evidence, and nothing came back."""
    results, _ = scripts
    found = results.results_of(pandas.DataFrame(rows_of("adamw", 0.3, 0.0, with_random=-0.4)), 6, NO_CONTROL)
    back = next(each for each in found["looks"] if each["question"] == "brought back")
    assert (back["p_holm"] < 0.05, back["low"] > 0) == (True, True)
    assert "adamw: against" in results.recovery_verdict(found)


def test_a_vector_that_helps_the_base_as_much_is_seen_beside_its_control(scripts):
    results, _ = scripts
    control = pandas.DataFrame(rows_of("control", 0.0, 0.25))
    found = results.results_of(pandas.DataFrame(rows_of("adamw", 0.3, 0.25)), 6, control)
    (more,) = found["beyond the base"]
    assert more["low"] < 0 < more["high"]
    assert abs(more["difference"]) < 0.01
    assert "adamw: undecided: answers come back, but it is not shown that the base" in results.recovery_verdict(found)
    without = results.results_of(pandas.DataFrame(rows_of("adamw", 0.3, 0.25)), 6, NO_CONTROL)
    assert "adamw: undecided until the base is compared with itself" in results.recovery_verdict(without)


def test_nothing_is_said_of_a_loss_that_is_not_shown_nor_of_lists_without_a_spread(scripts):
    """A loss of 0.08 points is no reason to say that guided training keeps too little of it."""
    results, _ = scripts
    rows = [*rows_of("adamw", 0.0008, 0.0), *rows_of("guided", 0.0008, 0.0)]
    found = results.results_of(pandas.DataFrame(rows), 6, NO_CONTROL)
    assert results.guided_verdict(found).startswith("Undecided: AdamW's own loss is not shown")
    equal = results.look("lost", "adamw", pandas.Series([1 / 22] * 6))
    assert (equal["p"], results.numbers(equal)) == (1.0, "+4.5% in every list, without an interval")


def test_a_method_without_all_lists_is_not_finished_and_a_higher_rate_is_the_one_that_counts(scripts):
    results, _ = scripts
    rows = [
        *rows_of("adamw", 0.01, 0.0),
        *rows_of("adamw", 0.4, 0.4, rate="high"),
        *rows_of("sam", 0.4, 0, rate="high"),
    ]
    found = results.results_of(pandas.DataFrame(rows[:-1]), 6, NO_CONTROL)
    assert found["rate"] == "high"
    assert found["looks"][0]["difference"] == pytest.approx(0.4)
    assert "sam: not finished" in results.recovery_verdict(found)


def test_tables_and_figure_of_unfinished_rows(scripts, tmp_path):
    results, figure = scripts
    base = {"kind": "base", "questions": 22, "heads": [[14, 1], [20, 5]]}
    for name in ("few_shot", "zero_shot", "steered", "joint_effect", "random_effect"):
        base |= {name: 0.5, f"{name}_low": 0.4, f"{name}_high": 0.6}
    layers = {"kind": "layers", "list": "a", "questions": 21, "zero_shot": 0.1, "steered": [0.1, 0.9, 0.2]}
    control = [row | {"kind": "control"} for row in rows_of("adamw", 0.0, 0.1)]
    rows = [*({"list": name, **base} for name in LISTS), layers, *control, *planted()]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    said = results.main(file, tmp_path)
    assert "| adamw | a |" in said
    assert "14.1, 20.5" in said
    assert "+30.0% [" in said
    assert (tmp_path / "results.json").exists()
    figure.main(str(file), str(tmp_path))
    assert (tmp_path / "instruction_vectors.png").stat().st_size > 10_000

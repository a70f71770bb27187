"""What runs on SmolLM2, here with a tiny Llama and made-up questions in its cache; the verdicts on planted rows."""

import json
import sys
from pathlib import Path

import jsonschema
import numpy as np
import pandas
import pytest
import torch
from conftest import build_model
from scipy import stats

import landscape
from landscape.public import packages

ROOT = Path(__file__).parents[2]
REAL = packages.cache_folder() / "SmolLM2-135M-Instruct"
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


@pytest.fixture(scope="module")
def results():
    sys.path.insert(0, str(ROOT / "analyses"))
    import smollm2_results

    sys.path.pop(0)
    return smollm2_results


@pytest.fixture(scope="module")
def correlations(results):
    return sys.modules["smollm2_correlations"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory, tokenizer):
    """What `landscape fetch` leaves behind, with a tiny model and made-up tasks in place of the real ones."""
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("cache")
    chatty = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer._tokenizer, eos_token="<|end|>", pad_token="<|end|>", chat_template=TEMPLATE
    )
    landscape.save_checkpoint(build_model("llama", tie_word_embeddings=True), chatty, folder / "SmolLM2-135M-Instruct")
    (folder / "bigbench").mkdir()
    sys.path.insert(0, str(ROOT / "analyses"))
    from smollm2_texts import all_tasks, records_file
    from study_folder import read_settings

    from landscape.study import real_demo

    sys.path.pop(0)
    settings = read_settings(ROOT / "analyses/smollm2.toml", quick=True)
    from landscape.public.bigbench import chat_of

    for number, task in enumerate(dict.fromkeys([*all_tasks(settings), real_demo.NEW, *real_demo.OLD])):
        made = [
            {"prompt": f"{number} and {i}?", "choices": ["red", "blue", "old"], "answer": (i + number) % 3}
            for i in range(80)
        ]
        for chat in (False, True):
            lines = [json.dumps(chat_of(record) if chat else record) for record in made]
            records_file(folder / "bigbench", task, chat).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def run_script(forks, cache):
    def run(program, *arguments):
        return forks.run(*arguments, program=program, cwd=ROOT, environment={"LANDSCAPE_CACHE": str(cache)})

    return run


@pytest.mark.slow
def test_the_study_runs_from_a_cache_and_continues_from_its_committed_rows(tmp_path, run_script):
    rows = tmp_path / "rows.jsonl"
    settings = tmp_path / "settings.toml"  # The quick ones with one task and fewer methods: each takes two seconds.
    text = (ROOT / "analyses/smollm2.toml").read_text("utf-8")
    for line in ('math = "elementary_math_qa/question_only"', 'methods = ["adamw", "sam", "lora-adamw", "lora-sam", '):
        assert line in text
    text = text.replace('math = "elementary_math_qa/question_only"\n', "")
    settings.write_text(text.replace('"sam", "lora-adamw", ', ""), encoding="utf-8")
    study = [
        ROOT / "analyses/smollm2.py",
        "--rows",
        rows,
        "--settings",
        settings,
        "--workers",
        1,
        "--quick",
        "--output",
    ]
    done = run_script(*study, tmp_path / "one")
    assert done.returncode == 0, done.stderr
    read = [json.loads(line) for line in rows.read_text("utf-8").splitlines()]
    names = {row["name"] for row in read}
    assert len(names) == len(read) == 1 + (2 + 1 + 1 + 1) + 5 * 2  # base, pilot, five methods with two seeds
    assert not list((tmp_path / "one/checkpoints").iterdir())
    runs = pandas.DataFrame([row for row in read if row["kind"] == "run"])
    assert np.isfinite(runs.drop(columns=["rho"]).select_dtypes("number")).all(axis=None)
    assert "rehearsal - adamw" in done.stdout
    assert np.allclose(runs[runs["method"] == "sam-wide"]["rho"], 3 * 0.01)  # the only radius that was tried
    assert np.allclose(runs[runs["method"] == "lora-sam"]["rho"], 0.01)
    halfway, tuned = (runs[runs["method"] == name].set_index(["task", "seed"]) for name in ("wise-ft", "adamw"))
    # Half of the step in float32 weights of about 0.1: rounding is some 1e-7 of each, far below the step of about 1e-3.
    assert np.allclose(halfway["distance"], tuned["distance"] / 2, rtol=1e-3)

    lost = (
        "runs/intent/lora-sam-1"  # Another machine, with all rows but one: that one alone is made, to the same numbers.
    )
    rows.write_text("".join(f"{json.dumps(row)}\n" for row in read if row["name"] != lost), encoding="utf-8")
    again = run_script(*study, tmp_path / "two")
    assert again.returncode == 0, again.stderr
    found = {row["name"]: row for row in map(json.loads, rows.read_text("utf-8").splitlines())}
    assert set(found) == names
    for row in read:
        timed = {name for name in row if name.endswith("seconds")}
        kept = {name: value for name, value in row.items() if name not in timed}
        assert kept == {name: value for name, value in found[row["name"]].items() if name not in timed}
        assert row["name"] == lost or found[row["name"]] == row
    figure = run_script(ROOT / "figures/smollm2.py", rows, tmp_path / "one")
    assert figure.returncode == 0, figure.stderr
    assert (tmp_path / "one/smollm2.png").stat().st_size > 10_000

    other = run_script(*study[:7], "--output", tmp_path / "three")  # the settings of the whole study
    assert other.returncode == 1
    assert "rows of other settings or another model" in other.stderr
    assert "Traceback" not in other.stderr


def test_the_second_order_prediction_is_the_exact_one_for_a_small_step(tokenizer):
    sys.path.insert(0, str(ROOT / "analyses"))
    import smollm2

    sys.path.pop(0)
    base, after = build_model("llama"), build_model("llama")
    drawn = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in after.parameters():
            weight += 0.01 * torch.randn(weight.shape, generator=drawn)
    data = landscape.load_data("builtin:docs@heldout", tokenizer, max_length=32, limit=8)
    exact = landscape.compute_sharpness(after, data, metric="displacement_curvature", base=base).details
    found = smollm2.second_order_rise(base, after, data)
    # Differences of h = 1/2 leave third and fourth orders of the step, 0.1% here. Without the curvature, which is a
    # quarter of it, or with twice as much, the prediction would be far off.
    assert found == pytest.approx(exact["predicted_rise"], rel=0.01)
    assert abs(exact["curvature_term"]) > 0.1 * abs(exact["predicted_rise"])


def planted(effects, seeds=3, noise=0.01):
    """Runs whose forgetting is the effect of the method, one of the task and seed together, and noise."""
    drawn = np.random.default_rng(0)
    rows = []
    for task in ("math", "intent"):
        for seed in range(seeds):
            shared = drawn.normal()
            for method, effect in effects.items():
                rows.append({"task": task, "seed": seed, "method": method})
                rows[-1]["forgetting"] = shared + effect + noise * drawn.normal()
    return pandas.DataFrame(rows)


def test_a_contrast_is_the_regression_on_tasks_and_pairs(results):
    runs = planted({"sam": -0.1, "adamw": 0.0})
    found = results.contrast(runs, "sam", "adamw", "forgetting")
    table = runs.pivot(index=["task", "seed"], columns="method", values="forgetting")
    differences = table["sam"] - table["adamw"]
    # The same estimate by least squares: a mean for each task, and the residual variance of that model.
    tasks = pandas.get_dummies(differences.index.get_level_values("task")).to_numpy(float)
    means, (squares,), _, _ = np.linalg.lstsq(tasks, differences.to_numpy())
    halves = np.full(2, 0.5)
    error = np.sqrt(squares / 4 * halves @ np.linalg.inv(tasks.T @ tasks) @ halves)
    reach = stats.t.ppf(0.975, 4) * error
    expected = halves @ means - reach, halves @ means + reach
    assert np.allclose((found["low"], found["high"]), expected, rtol=1e-10)  # one formula twice, up to rounding
    assert found["p"] < 1e-3  # Unpaired, the shared effects of size 1 would hide a difference of 0.1.


def test_what_the_bases_vector_brings_back_is_counted_over_random_ones_alone(results):
    """A one-sample t interval by scipy, on differences whose task means are removed; other methods change nothing."""
    runs = planted({"adamw": 0.0, "sam": 5.0})
    gains = np.random.default_rng(1).normal(0.2, 0.05, len(runs))
    columns = {"few_shot_lost": 0.3 + 0 * gains, "gained_with_base": gains, "gained_with_random": 0.1}
    runs = runs.assign(**{f"instruction_vector_{name}": values for name, values in columns.items()})
    lost, gained, alone = results.recovered(runs)
    assert alone["difference"] == pytest.approx(gained["difference"] + 0.1)
    assert lost["difference"] == pytest.approx(0.3)
    more = (runs.assign(more=gains - 0.1)[runs["method"] == "adamw"]).groupby("task")["more"]
    within = np.sqrt(more.var().mean() / 6)  # the variances of the two tasks pooled, of six values
    assert gained["difference"] == pytest.approx(more.mean().mean())
    assert gained["high"] - gained["difference"] == pytest.approx(within * stats.t.ppf(0.975, 4))
    assert results.recovered(planted({"adamw": 0.0})) == []


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.skipif(not REAL.exists(), reason=f"{REAL} is not there: landscape fetch smollm2")
def test_the_real_model_against_itself_has_changed_no_vector(tmp_path):
    """Equal models give equal numbers exactly, and two models' vectors are made once in two calls."""
    sys.path.insert(0, str(ROOT / "analyses"))
    from smollm2_vectors import vectors_changed

    sys.path.pop(0)
    base = landscape.load_checkpoint(REAL, device="cpu")
    settings = {
        "instruction_vectors": {"tasks": ["plurals"], "shots": 4, "prompts": 2},
        "batch_tokens": 1024,
        "seed": 0,
    }
    with pytest.warns(landscape.MeasurementWarning, match="the base itself answers no more of plurals with its vector"):
        row = vectors_changed(tmp_path, base, base, settings)  # of two prompts with four examples each
    assert row["instruction_vector_cosine"] == pytest.approx(1)
    assert row["instruction_vector_few_shot_lost_plurals"] == row["instruction_vector_effect_lost"] == 0
    assert len(list(tmp_path.iterdir())) == 1


def test_intervals_of_contrasts_hold_the_truth_as_often_as_they_say(results):
    drawn, held = np.random.default_rng(1), 0
    for _ in range(200):
        rows = [
            {"task": task, "seed": seed, "method": method, "forgetting": drawn.normal() + shift * (task == "math")}
            for task in ("math", "intent") for seed in range(3) for method, shift in (("sam", 4.0), ("adamw", 0.0))
        ]  # fmt: skip
        found = results.contrast(pandas.DataFrame(rows), "sam", "adamw", "forgetting")
        held += found["low"] <= 2.0 <= found["high"]
    # 95% of 200 with a standard error of 1.5%. The variance over all six pairs would hold the difference of the tasks
    # and make it 100%.
    assert 0.91 < held / 200 < 0.99


def test_variances_of_the_tasks_apart_are_welchs_test_of_two_samples(results):
    """The sum of two means has the test of the difference between the one and minus the other."""
    runs = planted({"sam": -0.1, "adamw": 0.0})
    runs.loc[runs["task"] == "math", "forgetting"] *= 3
    found = results.contrast(runs, "sam", "adamw", "forgetting")
    math, intent = (np.array(found["by_task"][task]) for task in ("math", "intent"))
    welch = stats.ttest_ind(math, -intent, equal_var=False)
    low, high = welch.confidence_interval(0.95)
    assert found["apart_p"] == pytest.approx(welch.pvalue)
    assert (found["apart_low"], found["apart_high"]) == pytest.approx((low / 2, high / 2))


def test_intervals_hold_the_truth_where_one_task_varies_far_more(results):
    """As forgetting does after `intent`. The interval that pools the two variances then covers 89% (here 91%)."""
    drawn, held, pooled = np.random.default_rng(3), 0, 0
    for _ in range(300):
        rows = [
            {"task": task, "seed": seed, "method": method, "forgetting": scale * drawn.normal()}
            for task, scale in (("math", 0.1), ("intent", 1.0)) for seed in range(3) for method in ("sam", "adamw")
        ]  # fmt: skip
        found = results.contrast(pandas.DataFrame(rows), "sam", "adamw", "forgetting")
        held += found["apart_low"] <= 0 <= found["apart_high"]
        pooled += found["low"] <= 0 <= found["high"]
    assert held / 300 > 0.91  # 95% less three standard errors of 1.3%
    assert pooled < held


def test_a_task_of_one_pair_has_no_variance_of_its_own_and_no_evidence(results):
    runs = planted({"sam": -5.0, "adamw": 0.0})
    runs = runs[(runs["task"] == "math") | (runs["seed"] == 0)]
    (found,) = results.with_evidence([results.contrast(runs, "sam", "adamw", "forgetting")])
    assert found["p_holm"] < 0.01
    assert np.isnan(found["apart_low"])
    assert not found["evidence"]


def test_holm_corrects_as_in_the_textbook(results):
    ps = [0.01, 0.04, 0.03, 0.005]
    corrected = sys.modules["smollm2_contrasts"].corrected
    found = [each["p_holm"] for each in corrected([{"p": p} for p in ps])]
    assert found == pytest.approx([0.03, 0.06, 0.06, 0.02])  # Holm 1979: 4 x 0.005, 3 x 0.01, 2 x 0.03, then no less


def test_a_verdict_claims_no_more_than_its_interval(results):
    far = {"first": "a", "second": "b", "difference": -1.0, "low": -1.1, "high": -0.9, "pairs": 6, "p": 0.002}
    far |= {"apart_low": -1.2, "apart_high": -0.8, "apart_p": 0.004, "p_holm": 0.01, "apart_p_holm": 0.02}
    far["evidence"] = True
    same = {**far, "difference": 0.0, "low": -0.01, "high": 0.01, "apart_low": -0.02, "apart_high": 0.02}
    less = {**far, "difference": -0.2, "low": -0.3, "high": -0.1}
    assert results.verdict(far, same).endswith("forgets less without learning less.")
    assert results.verdict(far, less).endswith("forgets less, and may have learned less.")
    assert results.verdict(far, {**same, "apart_low": -0.06}).endswith("forgets less, and may have learned less.")
    none = {**far, "evidence": False, "p_holm": 0.06}
    assert results.verdict(none, same).endswith("no evidence of a difference in forgetting.")
    one = results.verdict({**none, "p_holm": 0.01, "apart_p_holm": 0.06}, same)
    assert "corrected p 0.01 (0.06 where each task has its own variance)" in one
    assert one.endswith("though by the plan's interval, in which both tasks vary alike, it forgets less.")
    short = results.contrast(planted({"sam": 0.0, "adamw": 0.0}, seeds=1), "sam", "adamw", "forgetting")
    assert "too few for an interval" in results.verdict(short, short)


def test_a_contrast_that_lacks_a_task_has_no_mean_over_tasks(results):
    runs = planted({"sam": 0.0, "adamw": 0.0})
    runs = runs[(runs["task"] == "math") | (runs["method"] == "adamw")]
    short = results.contrast(runs, "sam", "adamw", "forgetting")
    assert short["pairs"] == 3
    assert np.isnan(short["difference"])
    assert results.verdict(short, short) == "sam - adamw has 3 pairs, not of every task."


def test_where_sam_is_not_flatter_its_contrast_says_nothing_about_flatness(results):
    of = {"first": "sam", "second": "adamw", "outcome": "x", "difference": -1.0, "low": -2.0, "high": -0.1, "pairs": 6}
    of |= {"apart_low": -2.5, "apart_high": -0.05, "apart_p": 0.002}
    of |= {"p": 0.001, "p_holm": 0.01, "apart_p_holm": 0.02, "evidence": True}
    flat, sharp = {**of, "outcome": "flat"}, {**of, "outcome": "sharp", "difference": 1.0}
    assert results.verdict(of, of, [flat, sharp]).endswith("less (flatter by flat; sharper by sharp).")
    assert "says nothing about flatness" in results.verdict(of, of, [{**flat, "evidence": False}, sharp])
    assert "flat" not in results.verdict(of, of, [{**flat, "first": "sam-wide"}])


def test_nothing_can_come_back_that_was_not_lost(results):
    lost = {"first": "adamw", "second": "nothing", "difference": 0.2, "low": 0.1, "high": 0.3, "pairs": 6}
    lost |= {"apart_low": 0.05, "apart_high": 0.35}
    held = {**lost, "apart_low": -0.1}
    assert results.recovery(lost, lost, lost).endswith("speaks for Jiang et al.")
    assert results.recovery(lost, held, lost).endswith("no evidence.")
    assert results.recovery(lost, lost, held).endswith("no evidence that anything came back.")
    assert results.recovery(held, lost, lost).endswith("not read, as no loss was shown.")
    assert results.recovery({**lost, "low": np.nan}, lost, lost).endswith("not read, as no loss was shown.")


def test_a_choice_at_an_end_of_its_grid_is_reported(results):
    tried = {"kind": "pilot", "task": "math", "weights": "full", "rho": None}
    losses = {1e-5: 3.0, 1e-4: 1.0, 1e-3: None}  # the last one diverged
    pilot = [{**tried, "lr": lr, "validation_loss": loss} for lr, loss in losses.items()]
    (choice,) = results.chosen(pilot)
    assert (choice["value"], choice["end"]) == (1e-4, None)
    (choice,) = results.chosen(pilot[:2])
    assert results.choice_in_words(choice).endswith("lr 0.0001 of 1e-05, 0.0001, at the top of its grid.")


def test_seeds_that_methods_share_do_not_count_as_independent(correlations):
    """Metric and outcome share nothing but blocks of task and seed, each half of the variance within methods.

    The interval that takes seeds for independent left out zero in 19% of 150 such tables. The one over blocks may do so
    in 5%, of 60 tables 3, and in 8 or more with a probability of 1%.
    """
    drawn, wrong = np.random.default_rng(0), 0
    quick = landscape.Resampling(resamples=99)
    for _ in range(60):
        cells = pandas.MultiIndex.from_product([("a", "b"), range(7), range(3)], names=["task", "method", "seed"])
        table = pandas.DataFrame(index=cells).reset_index()
        blocks = table["task"] + table["seed"].astype(str)
        for name in ("metric", "forgetting"):
            shared = dict(zip(sorted(set(blocks)), drawn.normal(size=6), strict=True))
            table[name] = blocks.map(shared) + drawn.normal(size=42) + 2 * table["method"]
        row = correlations.tuned_alike(table, ["metric"], quick).iloc[0]
        wrong += not row["partial_low"] <= 0 <= row["partial_high"]
    assert wrong < 8


def test_a_run_that_diverged_has_rows_that_say_so_and_is_not_made_again(tmp_path, monkeypatch):
    sys.path.insert(0, str(ROOT / "analyses"))
    import smollm2

    sys.path.pop(0)
    tried = []
    monkeypatch.setattr(smollm2, "tune", lambda *arguments: tried.append(arguments[1]))  # None, as of a diverged run
    place = smollm2.Place(tmp_path, {"tuning": {"wide": 3}}, tmp_path, tmp_path, "one")
    for name, row in (("full-lr-1", {"lr": 1.0, "rho": None}), ("full-rho-2", {"lr": 1.0, "rho": 2.0})):
        place.row(f"pilot/math/{name}", lambda row=row: {**row, "validation_loss": 0.5})
    for _ in range(2):
        smollm2.measure_run("math", "adamw", 0, place)
        smollm2.measure_run("math", "sam-wide", 0, place)
    assert tried == ["math-adamw-0", "math-sam-wide-0"]
    rows = [json.loads(place.file_of(f"runs/math/{name}-0").read_text()) for name in ("adamw", "wise-ft", "sam-wide")]
    assert [(row["kind"], row["method"], row["rho"]) for row in rows] == [
        ("diverged", "adamw", None), ("diverged", "wise-ft", None), ("diverged", "sam-wide", 6.0)
    ]  # fmt: skip


def test_an_account_that_is_behind_the_outcome_adds_to_one_that_is_not(correlations):
    drawn, rows = np.random.default_rng(0), []
    for task, shift in (("math", 0.0), ("intent", 5.0)):
        for method in range(7):
            for seed in range(3):
                cause = drawn.normal()
                columns = {"surface_curvature_old": drawn.normal(), "kl_new": cause + shift, "distance": drawn.normal()}
                rows.append({"task": task, "method": f"m{method}", "seed": seed, **columns})
                rows[-1]["forgetting"] = cause + 0.3 * drawn.normal() - shift
    added = {(row["metric"], row["given"]): row for row in correlations.rivalry(pandas.DataFrame(rows))}
    assert len(added) == 6  # two accounts: alone, given each other, given the distance
    kl, flat = added["kl_new", "surface_curvature_old"], added["surface_curvature_old", "kl_new"]
    assert kl["partial_low"] > 0.5
    assert kl["blocks_low"] > 0.5
    assert kl["p_holm"] == pytest.approx(min(1, 2 * kl["partial_p"]))  # the smaller of two
    assert flat["partial_low"] < 0 < flat["partial_high"]
    # Without the task held fixed, its shift against the cause makes the correlation negative.
    assert added["kl_new", ""]["partial"] > 0.5


@pytest.mark.slow
def test_the_real_demo_tells_its_story_in_one_picture_and_is_not_made_twice(tmp_path, run_script):
    out = tmp_path / "out"
    done = run_script("landscape", "demo", "--real", "-q", "-o", out)
    assert done.returncode == 0, done.stderr
    rows = json.loads((out / "demo.json").read_text("utf-8"))
    schema = Path(__file__).parents[2] / "docs" / "schemas" / "demo.json"
    jsonschema.validate({"output": "", "report": "", "rows": rows}, json.loads(schema.read_text("utf-8")))
    assert {(row["checkpoint"], row["data"]) for row in rows} == {
        (name, data)
        for name in ("adamw", "sam")
        for data in ("docs", "word problems", "general_knowledge", "implicatures")
    }
    learned = {row["checkpoint"]: row["forgotten"] for row in rows if row["data"] == "word problems"}
    assert max(learned.values()) < 0  # The answers are one of three words: 40 steps from random weights learn that.
    assert all((row["accuracy_after"] is None) == (row["data"] in ("docs", "word problems")) for row in rows)
    assert (out / "story.png").stat().st_size > 20_000
    assert (out / "story.pdf").read_bytes().startswith(b"%PDF")
    assert "SmolLM2, fine-tuned" in (out / "report.html").read_text("utf-8")
    trained = {json.loads(line)["messages"][0]["content"] for line in open(out / "data/word-problems.jsonl")}
    held_out = {json.loads(line)["messages"][0]["content"] for line in open(out / "data/word-problems-heldout.jsonl")}
    assert len(held_out) == 64
    assert not trained & held_out
    made = {path: path.stat().st_mtime_ns for path in out.rglob("*.json")}
    again = run_script("landscape", "demo", "--real", "-q", "-o", out)
    assert again.returncode == 0, again.stderr
    measured = [path for path in made if path.parent.name in ("plot", "line", "forgetting", "adamw", "sam")]
    assert len(measured) > 15
    assert all(path.stat().st_mtime_ns == made[path] for path in measured)

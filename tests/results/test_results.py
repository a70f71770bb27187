"""Saving, journals and output folders: complete or not at all, and never mixed."""

import dataclasses
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from landscape.errors import InputError
from landscape.results import (
    Journal,
    Provenance,
    Result,
    digest_of,
    from_plain,
    replacing,
    results_folder,
    to_plain,
    write_json,
    write_text,
)
from landscape.surfaces.result import Marker, Surface
from landscape.weights.perturbation import Fidelity

SURFACE = Surface(
    name="x", data="d", kind="random", axes=(np.linspace(-1, 1, 3),), axis_labels=("x",), loss=np.ones(3), center=1.0,
    markers=(Marker("x", (0.0,), 1.0),), normalize="filter", seed=0, direction_cosine=None, fidelity=Fidelity(1.0, 1.0),
    weight=9.0, provenance=Provenance({}, 0, None, None, "cpu", "float32", 1.0),
).to_dict()  # fmt: skip


@given(values=st.lists(st.floats(allow_nan=True, allow_infinity=True, width=64), min_size=1))
@settings(max_examples=50, deadline=None)
def test_floats_come_back_bit_for_bit_through_strict_json(values):
    text = json.dumps(to_plain(np.array(values)), allow_nan=False)
    again = from_plain(np.ndarray, json.loads(text))
    assert np.array_equal(again, np.array(values), equal_nan=True)
    assert all(np.signbit(a) == np.signbit(b) for a, b in zip(again, values, strict=True) if a == a)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "result.json"
    write_text(path, "old")

    def fail():
        with replacing(path) as temporary:
            temporary.write_text("half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_no_result_is_refused(tmp_path):
    path = tmp_path / "x.json"
    for content, words in (
        ("{", "cannot be read"),
        ("[1]", "JSON object"),
        ("{}", "not a landscape/surface"),
        ('{"format": "landscape/surface", "format_version": 99}', "newer"),
        ('{"format": "landscape/surface", "format_version": 1, "name": 3}', "damaged"),
        ("[" * 100_000, "cannot be read"),
    ):
        path.write_text(content)
        with pytest.raises(InputError, match=words):
            Surface.load(path)
    with pytest.raises(InputError, match=r"missing.json"):
        Surface.load(tmp_path / "missing.json")


@pytest.mark.parametrize("value", [5, "x", [5], [[5]], {"a": 5}, True], ids=str)
@pytest.mark.parametrize(
    "field", ["name", "fidelity", "axes", "loss", "markers", "provenance", "weight", "format", "format_version"]
)
def test_a_damaged_result_is_refused_whatever_the_damage(tmp_path, field, value):
    fits = {"name": ["x"], "loss": [[5], [[5]]], "weight": [5], "axes": [[[5]]], "format_version": [5, True]}
    if value in fits.get(field, []):
        pytest.skip("no damage to the types; the rest is Surface's own to check")
    content = SURFACE | {field: value}
    (tmp_path / "x.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"x\.json is (a damaged|not a) landscape/surface file") as refusal:
        Surface.load(tmp_path / "x.json")
    assert field == "format" or field in str(refusal.value)


@dataclasses.dataclass(frozen=True)
class Checked(Result):
    """A result with a check of its own, as `from_plain` meets it."""

    kind_of_result = "checked"
    loss: np.ndarray

    def __post_init__(self):
        if self.loss.shape != (2,):
            raise InputError(f"loss has shape {self.loss.shape}, not (2,).")

    def rows(self):
        return []


def test_a_result_that_contradicts_itself_is_refused_with_its_file(tmp_path):
    Checked(np.ones(2)).save(tmp_path / "x.json")
    assert Checked.load(tmp_path / "x.json").loss.tolist() == [1.0, 1.0]
    write_json(tmp_path / "x.json", {"format": "landscape/checked", "format_version": 1, "loss": [1.0]})
    with pytest.raises(InputError, match=r"x\.json is a damaged landscape/checked file: loss has shape \(1,\)"):
        Checked.load(tmp_path / "x.json")


def test_a_journal_remembers_what_was_appended(tmp_path):
    with Journal(tmp_path / "j", {"seed": 0}) as journal:
        journal.append("a", [0.1, float("nan")])
        journal.append("b", [1 / 3, float("inf")])
    with Journal(tmp_path / "j", {"seed": 0}) as again:
        assert again.done == {"a": [0.1, "nan"], "b": [1 / 3, "inf"]}


def test_a_torn_last_line_is_dropped_wherever_it_tore(tmp_path):
    path = tmp_path / "j"
    with Journal(path, {}) as journal:
        for key in "abc":
            journal.append(key, 1.5)
    whole = path.read_bytes()
    second_last = whole[:-1].rfind(b"\n") + 1
    for cut in range(second_last, len(whole)):
        path.write_bytes(whole[:cut])
        with Journal(path, {}) as journal:
            assert sorted(journal.done) == ["a", "b"]
            journal.append("c", 2.5)
        with Journal(path, {}) as journal:
            assert journal.done["c"] == 2.5


def test_a_journal_torn_in_its_first_line_starts_over(tmp_path):
    path = tmp_path / "j"
    path.write_bytes(b'{"settings": "ab')
    with Journal(path, {}) as journal:
        assert journal.done == {}


def test_a_journal_damaged_in_the_middle_is_refused_with_its_line(tmp_path):
    path = tmp_path / "j"
    with Journal(path, {}) as journal:
        journal.append("a", 1)
        journal.append("b", 2)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"garbage\n" + lines[2])
    with pytest.raises(InputError, match="damaged at line 2"):
        Journal(path, {})


def test_a_journal_of_other_settings_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "j"
    with Journal(path, {"seed": 0}) as journal:
        journal.append("a", 1)
    before = path.read_bytes()
    with pytest.raises(InputError, match="other settings"):
        Journal(path, {"seed": 1})
    assert path.read_bytes() == before


def _hold(path, ready, done):
    with Journal(path, {}):
        ready.set()
        done.wait(30)


@pytest.mark.slow
def test_two_processes_on_one_journal_are_refused(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path / "j", ready, done))
    other.start()
    try:
        assert ready.wait(60)
        with pytest.raises(InputError, match="in use by another run"):
            Journal(tmp_path / "j", {})
    finally:
        done.set()
        other.join()


def test_a_killed_writer_loses_at_most_the_line_it_was_writing(tmp_path):
    script = (
        "import sys; from landscape.results import Journal\n"
        "j = Journal(sys.argv[1], {})\n"
        "for i in range(10**9):\n    j.append(str(i), i)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "j")])
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not ((tmp_path / "j").exists() and (tmp_path / "j").stat().st_size > 10**5):
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with Journal(tmp_path / "j", {}) as journal:
        count = len(journal.done)
        assert count > 1000
        assert journal.done == {str(i): i for i in range(count)}


def test_a_folder_belongs_to_one_set_of_settings(tmp_path):
    folder = tmp_path / "out"
    with results_folder(folder, {"seed": 0, "points": [3, 3]}):
        (folder / "result").write_text("kept")
    with results_folder(folder, {"seed": 0, "points": (3, 3)}):
        pass
    with (
        pytest.raises(InputError, match=r"other settings \(seed differ\)"),
        results_folder(folder, {"seed": 1, "points": [3, 3]}),
    ):
        pass
    assert (folder / "result").read_text() == "kept"


@pytest.mark.parametrize("error", [InputError, RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("already", [[], ["a"], ["a", "b"]])
def test_what_fails_before_any_result_leaves_no_trace(tmp_path, monkeypatch, error, already):
    monkeypatch.chdir(tmp_path)
    os.makedirs(os.path.join(*already, "")) if already else None
    before = sorted(map(str, tmp_path.rglob("*")))

    def fail():
        with results_folder("a/b", {"seed": 0}) as folder:
            Journal(folder / ".x.journal", {}).close()
            raise error

    with pytest.raises(error):
        fail()
    assert sorted(map(str, tmp_path.rglob("*"))) == before
    with results_folder("a/b", {"seed": 1}):  # and the place is free for another run
        pass


def test_what_is_finished_stays_whatever_happens(tmp_path):
    def fail(folder, write):
        with results_folder(folder, {}):
            write(folder)
            raise InputError("wrong")

    def journal_a_point(folder):
        with Journal(folder / ".x.journal", {}) as journal:
            journal.append("a", 1)

    for name, write in (("result", lambda folder: (folder / "result").write_text("kept")), ("point", journal_a_point)):
        with pytest.raises(InputError, match="wrong"):
            fail(tmp_path / name, write)
        assert len(list((tmp_path / name).iterdir())) == 2
    with results_folder(tmp_path / "old", {}):
        pass
    with pytest.raises(InputError, match="wrong"):
        fail(tmp_path / "old", lambda folder: None)
    assert (tmp_path / "old" / "settings.json").exists(), "it was there before this run"


def _live_in(folder, ready, done):
    with results_folder(folder, {}):
        ready.set()
        done.wait(30)


@pytest.mark.slow
def test_the_second_of_two_runs_on_a_new_folder_is_refused_and_removes_nothing(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    first = context.Process(target=_live_in, args=(tmp_path / "out", ready, done))
    first.start()
    try:
        assert ready.wait(60)
        with pytest.raises(InputError, match="in use by another run"), results_folder(tmp_path / "out", {}):
            pass
        assert (tmp_path / "out" / "settings.json").exists()
    finally:
        done.set()
        first.join()
    with results_folder(tmp_path / "out", {}):
        pass


def test_an_output_that_cannot_be_a_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to("gone/x")
    (tmp_path / "odd" / "settings.json").mkdir(parents=True)
    for name in ("file/below", "dangling", "n" * 300, "odd"):
        with pytest.raises(InputError, match=r"cannot be"), results_folder(tmp_path / name, {}):
            pass


AS_NOBODY = """
import os, sys
from transformers import AutoConfig, LlamaConfig  # what is imported later cannot be read
from landscape.checkpoints import inspect_checkpoint
from landscape.data.tokens import load_data
from landscape.errors import InputError
from landscape.results import results_folder
def write(folder):
    with results_folder(folder, {}): pass
class Tokenizer:
    pad_token_id = 0
    def __call__(self, text): raise AssertionError("nothing was read")
os.chdir(sys.argv[1])
os.setgid(65534); os.setuid(65534)
for attempt in (
    lambda: write("closed/out"), lambda: write("closed"), lambda: write("readonly"),
    lambda: inspect_checkpoint("closed/x"), lambda: inspect_checkpoint("closed"), lambda: inspect_checkpoint("ckpt"),
    lambda: load_data("closed/d.jsonl", Tokenizer()),
):
    try: attempt()
    except InputError as error: print(error)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become somebody else")
def test_what_may_not_be_read_or_written_is_refused_with_the_reason(save_checkpoint_folder):
    place = tempfile.mkdtemp()  # pytest's own is closed to others
    try:
        os.chmod(place, 0o755)
        shutil.copytree(save_checkpoint_folder("llama"), f"{place}/ckpt")
        os.chmod(f"{place}/ckpt/model.safetensors", 0)
        os.mkdir(f"{place}/closed", 0o700)
        os.mkdir(f"{place}/readonly", 0o755)
        with results_folder(f"{place}/readonly", {}):
            pass
        done = subprocess.run([sys.executable, "-c", AS_NOBODY, place], capture_output=True, text=True)
    finally:
        shutil.rmtree(place)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 7
    assert all("Permission denied" in line for line in lines), lines


def test_a_file_from_elsewhere_is_not_overwritten(tmp_path):
    (tmp_path / "surface.png").write_text("mine")
    with pytest.raises(InputError, match=r"surface\.png from elsewhere"), results_folder(tmp_path, {}, ["surface.png"]):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == ["surface.png"]
    with pytest.raises(InputError, match="is a file"), results_folder(tmp_path / "surface.png", {}):
        pass


def test_digests_do_not_depend_on_the_order_of_keys():
    assert digest_of({"a": 1, "b": (1.5, None)}) == digest_of({"b": [1.5, None], "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": 2})


def test_a_folder_with_other_files_is_not_written_into_without_a_word(tmp_path, caplog):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "notes.txt").touch()
    (folder / "thesis.tex").touch()
    with results_folder(folder, {"seed": 0}, ["result.json"]):
        (folder / "result.json").touch()
    assert caplog.messages == [f"{folder} is not empty: results are written beside notes.txt and 1 more."]
    with results_folder(folder, {"seed": 0}, ["result.json"]):  # it is ours by now
        pass
    assert len(caplog.messages) == 1


# --- equality -----------------------------------------------------------------------------------------------


def surface_with(**changes):
    return dataclasses.replace(Surface(**MEASURED), **changes)


MEASURED = {
    "name": "x", "data": "d", "kind": "random", "axes": (np.linspace(-1, 1, 3),), "axis_labels": ("x",),
    "loss": np.array([1.0, np.nan, np.inf]), "center": float("nan"), "markers": (Marker("x", (0.0,), float("nan")),),
    "normalize": "filter", "seed": 0, "direction_cosine": None, "fidelity": Fidelity(1.0, 1.0), "weight": 9.0,
    "provenance": Provenance({"span": (1, 2)}, 0, None, None, "cpu", "float32", 1.0),
}  # fmt: skip


def test_results_are_equal_where_the_same_measurement_gave_the_same_numbers(tmp_path):
    """Rejects the comparison of dataclasses, which fails on arrays, and one for which NaN differs from NaN."""
    a = surface_with()
    later = dataclasses.replace(a.provenance, seconds=7.0, created="2030-01-01T00:00:00+00:00")
    b = surface_with(loss=np.array([1.0, float("nan"), np.inf]), center=float("nan"), provenance=later)
    assert a == b
    assert (a != b) is False
    assert hash(a) == hash(b)
    assert len({a, b}) == 1
    assert Surface.load(a.save(tmp_path / "a.json")) == a, "what was read back, with lists in place of tuples"


@pytest.mark.parametrize(
    "change",
    [
        {"loss": np.array([1.0, np.nan, np.nextafter(2.0, 3.0)])},
        {"loss": np.array([1.0, 2.0, np.inf])},
        {"axes": (np.linspace(-1, 1, 4),)},
        {"markers": (Marker("x", (0.0,), 1.0),)},
        {"seed": 1},
        {"provenance": Provenance({"span": (1, 3)}, 0, None, None, "cpu", "float32", 1.0)},
    ],
)
def test_results_that_differ_in_a_bit_of_a_number_or_in_a_setting_are_not_equal(change):
    assert surface_with() != surface_with(**change)
    assert surface_with() != "a surface"


def test_every_kind_of_result_compares_like_this():
    """A dataclass makes its own comparison unless it finds one: none of ours may have got that."""
    import importlib
    import pkgutil

    import landscape

    for module in pkgutil.walk_packages(landscape.__path__, "landscape."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    kinds = Result.__subclasses__()
    assert len(kinds) >= 8
    for kind in kinds:
        assert kind.__eq__ is Result.__eq__, kind
        assert kind.__hash__ is Result.__hash__, kind


def test_directions_are_equal_where_their_tensors_are():
    import torch

    from landscape import Direction

    a, b = (Direction({"w": torch.tensor([1.0, 2.0])}, "random", "x", "filter", 0) for _ in range(2))
    assert a == b
    assert hash(a) == hash(b)
    assert a != Direction({"w": torch.tensor([1.0, 2.5])}, "random", "x", "filter", 0)
    assert a != Direction({"v": torch.tensor([1.0, 2.0])}, "random", "x", "filter", 0)
    assert a != Direction({"w": torch.tensor([1.0, 2.0])}, "random", "x", "filter", 1)
    assert a != 3

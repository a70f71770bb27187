"""Saving, journals and output folders: complete or not at all, and never mixed."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from landscape.errors import InputError
from landscape.results import Journal, digest_of, from_plain, replacing, results_folder, to_plain, write_text
from landscape.surface import Surface


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
    ):
        path.write_text(content)
        with pytest.raises(InputError, match=words):
            Surface.load(path)
    with pytest.raises(InputError, match=r"missing.json"):
        Surface.load(tmp_path / "missing.json")


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


def test_bad_input_leaves_no_new_folder_but_keeps_an_old_one(tmp_path):
    def fail(folder):
        with results_folder(folder, {}):
            (folder / "half").write_text("")
            raise InputError("wrong")

    with pytest.raises(InputError, match="wrong"):
        fail(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with results_folder(tmp_path / "old", {}):
        (tmp_path / "old" / "result").write_text("kept")
    with pytest.raises(InputError, match="wrong"):
        fail(tmp_path / "old")
    assert (tmp_path / "old" / "result").exists()


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

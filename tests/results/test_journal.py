"""Long runs that are killed, meet a full disk or meet each other: nothing is lost, and nothing half written."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import build_model, make_batches
from curved import MatrixOperator, start_vector, with_spectrum

import landscape.results.snapshots
import landscape.study.effort
from landscape.curvature.density import hessian_density
from landscape.curvature.eigenvalues import hessian_eigenvalues
from landscape.curvature.trace import hessian_trace
from landscape.errors import InputError, MeasurementWarning
from landscape.linalg.lanczos import lanczos
from landscape.linalg.quadrature import quadrature
from landscape.objective.scope import Run, Scope
from landscape.results import Journal, Snapshots, journaled
from landscape.sharpness import compute_sharpness
from landscape.surfaces.compute import compute_surface

SMALL = ("--device", "cpu", "--quiet", "--limit", "4")


class Killed(BaseException):
    """Stands for the end of a process where what it leaves on disk is what matters."""


@pytest.fixture
def every_product(monkeypatch):
    """Snapshots after every product, however long writing them takes."""
    monkeypatch.setattr(landscape.results.snapshots, "SHARE", 0)


def same_result(left, right):
    """Bit for bit the same, the recorded times aside."""
    left, right = left.to_dict(), right.to_dict()
    for said in (left, right):
        del said["provenance"]["seconds"], said["provenance"]["created"]
    assert left == right


# --- what a journal is of ------------------------------------------------------------------------------------

OF_A_PART = {
    "surface": lambda m, d, **how: compute_surface(m, d, dim=1, points=3, **how),
    "trace": lambda m, d, **how: hessian_trace(m, d, max_probes=4, **how),
    "average_case": lambda m, d, **how: compute_sharpness(m, d, metric="average_case", samples=4, **how),
    "eigenvalues": lambda m, d, **how: hessian_eigenvalues(m, d, max_matvecs=2, **how),
}


@pytest.mark.filterwarnings("ignore::landscape.errors.MeasurementWarning")
@pytest.mark.parametrize("name", OF_A_PART)
def test_a_journal_is_of_one_model_and_of_the_parameters_that_moved(name, tmp_path):
    """The same weights frozen elsewhere, other weights beside those that move, other buffers: other measurements."""
    measure, journal = OF_A_PART[name], tmp_path / "journal"
    model, data = build_model("llama"), make_batches(examples=2)
    measure(model, data, run=Run(journal=journal), scope=Scope(parameters="*.mlp.*"))
    measure(model, data, run=Run(journal=journal), scope=Scope(parameters="*.mlp.*"))
    with torch.no_grad():
        model.model.norm.weight.mul_(2)  # not among what moves
    with pytest.raises(InputError, match="other settings"):
        measure(model, data, run=Run(journal=journal), scope=Scope(parameters="*.mlp.*"))
    with torch.no_grad():
        model.model.norm.weight.div_(2)
        model.model.rotary_emb.inv_freq.mul_(2)
    with pytest.raises(InputError, match="other settings"):
        measure(model, data, run=Run(journal=journal), scope=Scope(parameters="*.mlp.*"))
    whole = tmp_path / "whole"
    measure(model, data, run=Run(journal=whole))
    model.model.embed_tokens.requires_grad_(False)
    with pytest.raises(InputError, match="other settings"):
        measure(model, data, run=Run(journal=whole))


# --- eigenvalues --------------------------------------------------------------------------------------------


class Counting(MatrixOperator):
    """Counts its products, and ends at the one after `last`."""

    def __init__(self, matrix, last=10**9):
        super().__init__(matrix)
        self.taken, self.last = 0, last

    def __call__(self, vectors):
        if self.taken == self.last:
            raise Killed
        self.taken += len(vectors)
        return super().__call__(vectors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lanczos_continues_bit_for_bit_from_wherever_it_was_stopped(dtype):
    matrix, start = with_spectrum(np.linspace(-1, 1, 60), dtype=dtype), start_vector(60).to(dtype)
    options = {"k": (2, 1), "which": "BE", "rtol": 1e-3, "basis_size": 8, "vectors": True}
    whole = lanczos(MatrixOperator(matrix), start, **options)
    assert whole.matvecs > 3 * 8, "several restarts, to stop before, at and after"
    for last in range(1, whole.matvecs):
        states = []
        with pytest.raises(Killed):
            lanczos(Counting(matrix, last), start, save_state=lambda s, to=states: to.append(s), **options)
        kept = states[-1]
        assert kept.matvecs == last
        left = Counting(matrix)
        again = lanczos(left, start, resume=kept, **options)
        assert left.taken == whole.matvecs - last
        assert again.matvecs == whole.matvecs
        assert np.array_equal(again.values, whole.values)
        assert np.array_equal(again.residuals, whole.residuals)
        assert torch.equal(again.vectors, whole.vectors)


def test_a_quadrature_continues_bit_for_bit_from_every_step():
    matrix = with_spectrum(np.linspace(-1, 5, 60), dtype=torch.float32)
    probes = torch.from_numpy(np.random.default_rng(0).choice([-1.0, 1.0], (3, 60))).float()
    states = []

    def keep(state):
        states.append(type(state)(state.current, state.previous, state.alphas.copy(), state.betas.copy(), *rest(state)))

    def rest(state):
        return state.second.copy(), state.step

    whole = quadrature(MatrixOperator(matrix), probes, 12, save_state=keep)
    for state in states:
        left = Counting(matrix)
        again = quadrature(left, probes, 12, resume=state)
        assert left.taken == 3 * (12 - state.step)
        for name in ("nodes", "weights", "first", "second"):
            assert np.array_equal(getattr(again, name), getattr(whole, name)), name


MEASURES = {
    "eigenvalues": lambda m, d, j: hessian_eigenvalues(m, d, k=(2, 1), which="BE", rtol=1e-3, run=Run(journal=j)),
    "differences": lambda m, d, j: hessian_eigenvalues(
        m, d, k=1, rtol=1e-2, run=Run(hvp="finite_difference", journal=j)
    ),
    "density": lambda m, d, j: hessian_density(m, d, probes=2, steps=8, run=Run(journal=j)),
    "trace": lambda m, d, j: hessian_trace(
        m, d, run=Run(method="hutchinson", hvp="finite_difference", journal=j), max_probes=8
    ),
    "average_case": lambda m, d, j: compute_sharpness(m, d, metric="average_case", samples=8, run=Run(journal=j)),
    "pac_bayes": lambda m, d, j: compute_sharpness(
        m, d, metric="pac_bayes", samples=4, tolerance=0.3, run=Run(journal=j)
    ),
    "top_eigenvalue": lambda m, d, j: compute_sharpness(m, d, metric="top_eigenvalue", rtol=0.1, run=Run(journal=j)),
}


@pytest.mark.filterwarnings("ignore::landscape.errors.MeasurementWarning")  # a trace of 8 probes is not known well
@pytest.mark.parametrize("name", MEASURES)
def test_a_measurement_stopped_on_its_way_continues_to_the_same_result(name, tmp_path, monkeypatch, every_product):
    measure, result, journal = MEASURES[name], tmp_path / "result.json", tmp_path / ".result.journal"
    model, data = build_model("llama"), make_batches(examples=3)
    whole = measure(model, data, None)
    append = Journal.append

    def killing_after(lines):
        def appended(self, key, value):
            append(self, key, value)
            if self._file.seek(0) or self._file.readall().count(b"\n") > lines:
                raise Killed

        return appended

    for lines in (1, 3):
        monkeypatch.setattr(Journal, "append", killing_after(lines))
        with pytest.raises(Killed):
            measure(model, data, journal)
    monkeypatch.setattr(Journal, "append", append)
    assert len(list(tmp_path.iterdir())) <= 3, "a journal, its vectors, and those that the kill kept from removal"
    same_result(measure(model, data, journal), whole)
    records = [json.loads(line) for line in journal.read_bytes().splitlines()[1:]]
    if "state" in (records[0]["value"] or {}):
        done = [record["value"]["state"].get("products", record["value"]["state"].get("at")) for record in records]
    else:
        done = sorted(record["key"] for record in records)
    assert len(done) > 3
    assert done == sorted(set(done)), "nothing is done twice"
    with pytest.raises(InputError, match="other settings"):
        measure(build_model("llama", seed=1), data, journal)
    journaled(result, lambda place: result.write_text(place.name))
    assert result.read_text() == journal.name
    journaled(result, lambda _: pytest.fail("made again"))
    assert list(tmp_path.iterdir()) == [result], "the journal, and what it kept beside it, is gone"


def test_snapshots_take_a_small_share_of_the_time_and_leave_room(tmp_path, monkeypatch):
    """By a clock of the test's: a product takes 1 second, writing takes what the disk takes."""
    now = [0.0]
    monkeypatch.setattr(landscape.results.snapshots.time, "perf_counter", lambda: now[0])
    tensors = {"basis": torch.zeros(1000, 1000)}
    save = landscape.results.snapshots.replacing_alone

    @contextlib.contextmanager
    def slowly(path):
        with save(path) as temporary:
            yield temporary
        now[0] += 2.0

    monkeypatch.setattr(landscape.results.snapshots, "replacing_alone", slowly)
    with Journal(tmp_path / "j", {}) as journal:
        snapshots = Snapshots(journal, "x")
        for product in range(100):
            now[0] += 1.0
            snapshots.offer({"product": product}, tensors)
        taken = journal.done["x"]["number"]
        assert taken == 5, "the first at once, as a fast disk is assumed, then one in 20 products"
        monkeypatch.setattr(
            landscape.results.snapshots.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 10**6)
        )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for product in range(100):
                now[0] += 1.0
                snapshots.offer({"product": product}, tensors)
        assert [w.category for w in caught] == [MeasurementWarning]
        assert journal.done["x"]["number"] == taken
    (tmp_path / journal.done["x"]["file"]).write_bytes(b"torn")
    with Journal(tmp_path / "j", {}) as journal, pytest.raises(InputError, match=r"cannot be read.*delete"):
        Snapshots(journal, "x").last()


# --- a full disk --------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 24 MB, and what fills it up to so many bytes."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not permitted here")

    def leave(free):
        (place / "ballast").unlink(missing_ok=True)
        with contextlib.suppress(OSError), open(place / "ballast", "wb", buffering=0) as ballast:
            ballast.write(bytes(max(0, shutil.disk_usage(place).free - free)))

    try:
        yield place, leave
    finally:
        os.chdir(tmp_path)
        subprocess.run(["umount", str(place)], check=True)


def contents(folder):
    """What the files of a folder say, without times of day and durations; figures by their size."""

    def without_times(value):
        if isinstance(value, dict):
            return {k: without_times(v) for k, v in value.items() if k not in ("seconds", "created")}
        return [without_times(v) for v in value] if isinstance(value, list) else value

    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".json":
            found[name] = without_times(json.loads(path.read_text()))
        elif path.suffix in (".png", ".csv", ".safetensors") and not name.endswith("details.csv"):
            found[name] = path.read_bytes()
        elif path.is_file():
            found[name] = None
    return found


def assert_nothing_half_written(folder):
    for path in folder.rglob("*"):
        assert not path.name.startswith(".partial-"), path
        if path.suffix == ".json":
            json.loads(path.read_text())
        if path.suffix == ".journal":
            assert path.read_bytes().endswith(b"\n")
            [json.loads(line) for line in path.read_bytes().splitlines()]


COMMANDS = {
    "plot": ("plot", "{a}", "--data", "{records}", *SMALL, "--dim", "1", "--points", "101"),
    "hessian": ("hessian", "{a}", "--data", "{records}", *SMALL, "--top", "2", "--trace-rtol", "0.2"),
    "measure": (
        "measure", "{a}", "{b}", "--old", "{records}", "--new", "{records}", *SMALL, "--flatness-on", "old",
        "--metric", "average_case:samples=256", "--metric", "top_eigenvalue",
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_stops_a_run_with_a_sentence_and_the_next_one_continues(
    command, run, save_checkpoint_folder, records, small_disk, every_product, monkeypatch
):
    monkeypatch.setattr(landscape.study.effort, "WORTH_SAYING", np.inf)  # a slow machine would announce a long run
    disk, leave = small_disk
    names = {"a": save_checkpoint_folder("llama", seed=1), "b": save_checkpoint_folder("llama", seed=2)}
    arguments = [part.format(records=records, **names) for part in COMMANDS[command]]
    name = "out/table.csv" if command == "measure" else "out"
    code, _, err = run(*arguments, "-o", name)
    assert code == 0, err
    stopped = 0
    for pages in (0, 1, 2, 3, 5):
        leave(4096 * pages)
        code, _, err = run(*arguments, "-o", disk / name)
        if code:
            stopped += 1
            assert code == 2, err
            said = [line for line in err.splitlines() if line.startswith("landscape: ") and "warning" not in line]
            said = [line for line in said if "earlier run" not in line]  # what is kept of it
            assert len(said) == 1
            assert "no space left" in said[0].lower()
            assert str(disk / "out") in said[0]
            assert "Traceback" not in err
        assert_nothing_half_written(disk)
    assert stopped >= 2
    (disk / "ballast").unlink()
    code, _, err = run(*arguments, "-o", disk / name)
    assert code == 0, err
    assert contents(disk / "out") == contents(Path("out"))


@pytest.mark.slow
def test_a_full_disk_stops_fine_tuning_too(run, save_checkpoint_folder, records, small_disk):
    disk, leave = small_disk
    base = save_checkpoint_folder("llama", seed=1)
    arguments = ("finetune", base, "--data", records, "--steps", "6", "--save-every", "2", "--batch-size", "4",
                 "--device", "cpu", "--quiet")  # fmt: skip
    code, _, err = run(*arguments, "-o", "out")
    assert code == 0, err
    stopped = 0
    for free in (0, 2**15, 2**18, 2**19, 2**20):
        leave(free)
        code, _, err = run(*arguments, "-o", disk / "out")
        if code:
            stopped += 1
            assert code == 2, err
            said = [line for line in err.splitlines() if line.startswith("landscape: ") and "warning" not in line]
            assert len(said) == 1, err
            assert "no space left" in said[0].lower()
            assert str(disk / "out") in said[0]
            assert "Traceback" not in err
            assert not (disk / "out").exists()
    assert stopped >= 3
    (disk / "ballast").unlink()
    code, _, err = run(*arguments, "-o", disk / "out")
    assert code == 0, err
    assert contents(disk / "out") == contents(Path("out"))


# --- kill -9 ------------------------------------------------------------------------------------------------


def journal_lines(folder):
    return sum(path.read_bytes().count(b"\n") for path in folder.glob(".*.journal"))


def results_in(folder):
    return [path for path in folder.glob("[!.]*") if path.name != "settings.json"]


@pytest.mark.slow
@pytest.mark.parametrize(("command", "many"), [("plot", 100), ("hessian", 10)])
def test_a_run_killed_at_every_stage_ends_with_the_same_files(
    command, many, forks, save_checkpoint_folder, records, tmp_path
):
    """Killed before it measures, at the first lines of a journal, far on, and while results and figures are written.

    One run is killed again and again, each time a random moment after it has come to the next stage, and continues.
    A run that ends before its kill is compared, and another begins.
    """
    arguments = [part.format(a=save_checkpoint_folder("llama", seed=1), records=records) for part in COMMANDS[command]]
    if command == "plot":
        arguments += ["--points", "401"]  # long enough to be killed on its way
    whole, folder = tmp_path / "whole", tmp_path / "killed-0"
    assert forks.run(*arguments, "-o", whole, every_product=True).returncode == 0
    moments = random.Random(0)

    def further(lines):
        reached = journal_lines(folder) + lines
        return lambda: journal_lines(folder) >= reached

    stages = [
        lambda: lambda: True,
        lambda: lambda: any(folder.glob(".*.journal")),
        *[lambda: further(moments.randint(1, 8))] * 3,
        *[lambda: further(moments.randint(many // 2, many))] * 2,
        lambda: lambda: results_in(folder),
        lambda: lambda: any(path.suffix in (".png", ".pdf", ".html", ".csv") for path in results_in(folder)),
    ]
    kills, at_work, runs = 0, 0, 0
    for stage in stages:
        come_to = stage()
        process = forks.start(*arguments, "-o", folder, every_product=True)
        while not come_to() and process.alive():
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.03))
        process.send(signal.SIGKILL)
        code = process.wait().returncode
        assert code in (0, -signal.SIGKILL)
        kills += code == -signal.SIGKILL
        at_work += code == -signal.SIGKILL and journal_lines(folder) > 1
        for path in results_in(folder):
            if path.suffix == ".json":
                json.loads(path.read_text())  # complete, or not there
        if code == 0:
            assert contents(folder) == contents(whole)
            runs += 1
            folder = tmp_path / f"killed-{runs}"
    assert kills >= 7
    assert at_work >= 4, "a journal was there to continue from"
    assert forks.run(*arguments, "-o", folder, every_product=True).returncode == 0
    assert contents(folder) == contents(whole)

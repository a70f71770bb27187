"""The examples run as they are printed."""

import shutil
from pathlib import Path

import pytest

from landscape.surfaces.result import Surface

TESTS = Path(__file__).parents[1]
EXAMPLES = TESTS.parent / "examples"


@pytest.mark.slow
def test_two_checkpoints(tmp_path, forks, save_checkpoint_folder, records):
    folders = [save_checkpoint_folder("llama", seed=seed) for seed in (1, 2)]
    done = forks.run(*folders, records, "3", program=EXAMPLES / "two_checkpoints.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "surfaces.pdf").read_bytes().startswith(b"%PDF")
    assert Surface.load(tmp_path / "llama-1.json").loss.shape == (3, 3)
    assert "surface curvature" in done.stdout


@pytest.mark.slow
def test_compute_sharpness(tmp_path, forks):
    done = forks.run(program=EXAMPLES / "compute_sharpness.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("+-") >= 4
    assert "digits" in done.stdout
    assert "fisher_rao" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("sharpness.ipynb", ["16 examples", "<table", "worst_case", "unchanged by", "fisher_rao"]),
        ("sam_vs_adamw.ipynb", ["docs", "code", "forgetting", "average_case"]),
    ],
)
def test_notebooks_run_from_their_first_cell_to_their_last(name, shown, tmp_path, forks, save_checkpoint_folder):
    """On checkpoints smaller than those of `make demo`, in the place where the notebooks look for them."""
    assert len(list(EXAMPLES.glob("*.ipynb"))) == 2, "every notebook is named above"
    for seed, checkpoint in enumerate(("base", "adamw", "sam"), 1):
        shutil.copytree(save_checkpoint_folder("llama", seed=seed), tmp_path / "landscape-demo" / checkpoint)
    (tmp_path / "examples").mkdir()
    done = forks.run(
        EXAMPLES / name, program=TESTS / "notebook.py", cwd=tmp_path / "examples", environment={"MPLBACKEND": "agg"}
    )
    assert done.returncode == 0, done.stderr
    for words in shown:
        assert words in done.stdout

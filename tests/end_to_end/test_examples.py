"""The examples run as they are printed."""

import json
import shutil
from pathlib import Path

import pytest

from landscape.public.packages import cache_folder
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


NOTEBOOKS = {
    "getting_started": ["12 examples", "<table", "worst_case", "forgetting", "image/png"],
    "your_model_and_data": ["eigenvalues", "no decay", "16 examples, ", "image/png"],
    "flatness_and_forgetting": ["kl_old", "within recipe", "image/png"],
    "smollm2": ["4 examples", "image/png"],
}


def test_every_notebook_is_run_and_has_the_outputs_of_all_its_cells():
    """Stored outputs are small: a picture has at most 100 kB, and a notebook 500 kB."""
    assert {path.stem for path in EXAMPLES.glob("*.ipynb")} == set(NOTEBOOKS)
    for name in NOTEBOOKS:
        path = EXAMPLES / f"{name}.ipynb"
        assert path.stat().st_size < 500_000
        assert "/work/" not in path.read_text(encoding="utf-8")
        cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
        outputs = [output for cell in cells for output in cell["outputs"]]
        assert all(cell["execution_count"] for cell in cells)
        assert not any(output["output_type"] == "error" for output in outputs)
        pictures = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]
        assert pictures
        assert max(map(len, pictures)) < 100_000 * 4 / 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.real] * (name == "smollm2")) for name in NOTEBOOKS]
)
def test_notebooks_run_from_their_first_cell_to_their_last(name, tmp_path, forks, save_checkpoint_folder):
    """On checkpoints smaller than those of the demo, in the place where the notebooks look for them."""
    if name == "smollm2" and not (cache_folder() / "SmolLM2-135M-Instruct" / "config.json").exists():
        pytest.skip("landscape fetch smollm2 has not been run")
    for seed, checkpoint in enumerate(("base", "adamw", "sam"), 1):
        shutil.copytree(save_checkpoint_folder("llama", seed=seed), tmp_path / "landscape-demo" / checkpoint)
    shutil.copytree(EXAMPLES.parent / "docs" / "studies", tmp_path / "docs" / "studies")
    (tmp_path / "examples").mkdir()
    done = forks.run(
        EXAMPLES / f"{name}.ipynb",
        program=TESTS / "notebook.py",
        cwd=tmp_path / "examples",
        environment={"MPLBACKEND": "agg"},
    )
    assert done.returncode == 0, done.stderr
    for words in NOTEBOOKS[name]:
        assert words in done.stdout

"""The examples run as they are printed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from landscape.surfaces.result import Surface

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_two_checkpoints(tmp_path, save_checkpoint_folder, records):
    folders = [str(save_checkpoint_folder("llama", seed=seed)) for seed in (1, 2)]
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "two_checkpoints.py"), *folders, str(records), "3"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "surfaces.pdf").read_bytes().startswith(b"%PDF")
    assert Surface.load(tmp_path / "llama-1.json").loss.shape == (3, 3)
    assert "surface curvature" in done.stdout


def test_compute_sharpness(tmp_path):
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "compute_sharpness.py")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("+-") >= 4
    assert "digits" in done.stdout
    assert "fisher_rao" in done.stdout


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda p: p.name)
def test_notebooks_are_whole_and_their_code_compiles(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            code = "".join(line for line in cell["source"] if not line.startswith(("!", "%")))
            compile(code, str(path), "exec")

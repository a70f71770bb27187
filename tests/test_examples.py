"""The examples run as they are printed."""

import subprocess
import sys
from pathlib import Path

from landscape.surface import Surface

EXAMPLES = Path(__file__).parent.parent / "examples"


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

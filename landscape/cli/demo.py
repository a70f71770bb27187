"""`landscape demo`: the whole story, from nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from landscape.cli.common import Quiet, Seed, app, quiet_libraries


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for everything it makes.")] = Path(
        "landscape-demo"
    ),
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """The whole story on built-in data: pre-train on docs, fine-tune on code with AdamW and SAM, compare."""
    quiet_libraries()
    from landscape.study.demo import run_demo

    run_demo(output, seed=seed, progress=not quiet)

"""`landscape merge`: weights between a base and a tuned checkpoint."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from landscape.cli.common import Trust, app, quiet_libraries


@app.command()
def merge(
    base: Annotated[str, typer.Argument(metavar="BASE", help="Checkpoint folder or hub id: alpha 0.")],
    tuned: Annotated[str, typer.Argument(metavar="CKPT", help="What was tuned from it, or an adapter: alpha 1.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the merged checkpoint.")],
    alpha: Annotated[float, typer.Option(help="Share of the tuned weights, 0 to 1.")] = 0.5,
    trust_remote_code: Trust = False,
) -> None:
    """WiSE-FT (Wortsman et al. 2022): (1-alpha)*BASE + alpha*CKPT as a checkpoint with landscape.json."""
    quiet_libraries()
    from landscape.checkpoints.merging import merge_checkpoints

    folder = merge_checkpoints(base, tuned, alpha, output, trust_remote_code=trust_remote_code)
    print(f"wrote {folder}", file=sys.stderr)

"""`landscape finetune`: a checkpoint tuned with AdamW or SAM."""

from __future__ import annotations

import enum
import sys
from pathlib import Path
from typing import Annotated

import typer

from landscape.cli.common import Device, Limit, MaxLength, Quiet, Seed, Trust, app, quiet_libraries


class Optimizer(enum.StrEnum):
    adamw = "adamw"
    sam = "sam"


@app.command()
def finetune(
    base: Annotated[str, typer.Argument(metavar="BASE", help="Checkpoint folder or hub id to start from.")],
    data: Annotated[str, typer.Option(help="A .jsonl, .txt or .parquet file, a datasets id, builtin:docs or :code.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the tuned checkpoint.")],
    optimizer: Annotated[Optimizer, typer.Option(help="AdamW, or SAM around AdamW.")] = Optimizer.adamw,
    rho: Annotated[float, typer.Option(help="SAM: radius of the ascent step (global l2 norm).")] = 0.05,
    lr: Annotated[float, typer.Option(help="Peak learning rate; 5% warm-up, then linear to 0.")] = 1e-5,
    epochs: Annotated[float, typer.Option(help="Passes over the data.")] = 1.0,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps, instead of epochs.")] = None,
    batch_size: Annotated[int, typer.Option(help="Examples a step.")] = 16,
    save_every: Annotated[int, typer.Option(help="Steps between training checkpoints an interrupted run uses.")] = 200,
    limit: Limit = None,
    max_length: MaxLength = 512,
    device: Device = "auto",
    seed: Seed = 0,
    quiet: Quiet = False,
    trust_remote_code: Trust = False,
) -> None:
    """Fine-tune a checkpoint with AdamW or SAM into a Hugging Face folder with landscape.json."""
    quiet_libraries()
    from landscape.finetune import finetune as run
    from landscape.results import read_json

    folder = run(
        base,
        data,
        output,
        optimizer=optimizer.value,
        rho=rho,
        lr=lr,
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        max_length=max_length,
        limit=limit,
        seed=seed,
        save_every=save_every,
        device=device,
        trust_remote_code=trust_remote_code,
        progress=not quiet,
    )
    record = read_json(folder / "landscape.json")
    losses, where = record["losses"], record["evaluated_on"]["source"]
    before, after = losses["evaluated_before"], losses["evaluated_after"]
    print(f"{record['steps_taken']} steps; loss on {where}: {float(before):.4f} before, {float(after):.4f} after")
    print(f"wrote {folder}", file=sys.stderr)

"""`landscape finetune`: a checkpoint tuned with AdamW, SAM or adaptive SAM."""

from __future__ import annotations

import enum
import sys
from pathlib import Path
from typing import Annotated

import typer

from landscape.cli.common import Device, Limit, MaxLength, Quiet, Seed, Trust, app, quiet_libraries
from landscape.errors import InputError


class Optimizer(enum.StrEnum):
    adamw = "adamw"
    sam = "sam"
    asam = "asam"


@app.command()
def finetune(
    base: Annotated[str, typer.Argument(metavar="BASE", help="Checkpoint folder or hub id to start from.")],
    data: Annotated[str, typer.Option(help="A .jsonl, .txt or .parquet file, a datasets id, builtin:docs or :code.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the tuned checkpoint.")],
    optimizer: Annotated[Optimizer, typer.Option(help="AdamW, or around it SAM or adaptive SAM.")] = Optimizer.adamw,
    rho: Annotated[
        float | None, typer.Option(help="Radius of the ascent step (global l2 norm). Default: sam 0.05, asam 0.5.")
    ] = None,
    lr: Annotated[float, typer.Option(help="Peak learning rate; 5% warm-up, then linear to 0.")] = 1e-5,
    epochs: Annotated[float, typer.Option(help="Passes over the data.")] = 1.0,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps, instead of epochs.")] = None,
    batch_size: Annotated[int, typer.Option(help="Examples a step.")] = 16,
    accumulate: Annotated[int, typer.Option(help="Parts of a step's batch, one in memory at a time.")] = 1,
    lora: Annotated[
        int | None, typer.Option(metavar="RANK", help="Train a LoRA adapter on all linear layers but the head.")
    ] = None,
    rehearse: Annotated[str | None, typer.Option(help="Old data to mix into the training data.")] = None,
    rehearse_ratio: Annotated[float | None, typer.Option(help="Share of old examples in the mix. Default 0.1.")] = None,
    save_every: Annotated[int, typer.Option(help="Steps between training checkpoints an interrupted run uses.")] = 200,
    keep_trajectory: Annotated[
        int | None,
        typer.Option(metavar="N", help="Keep N evenly spaced checkpoints, for landscape plot --kind trajectory."),
    ] = None,
    limit: Limit = None,
    max_length: MaxLength = 512,
    device: Device = "auto",
    seed: Seed = 0,
    quiet: Quiet = False,
    trust_remote_code: Trust = False,
) -> None:
    """Fine-tune a checkpoint with AdamW, SAM or adaptive SAM into a Hugging Face folder with landscape.json."""
    quiet_libraries()
    if optimizer is Optimizer.adamw and rho is not None:
        raise InputError("--rho is the radius of sam and asam; it does not go with --optimizer adamw.")
    if rehearse is None and rehearse_ratio is not None:
        raise InputError("--rehearse-ratio is a share of old data, but --rehearse names none.")
    from landscape.checkpoints import LoadOptions
    from landscape.data.tokens import DataOptions
    from landscape.results import read_json
    from landscape.training.finetuning import finetune as run
    from landscape.training.options import Optimization, Rehearsal, Saving

    rehearsal = None
    if rehearse is not None:
        rehearsal = Rehearsal(rehearse) if rehearse_ratio is None else Rehearsal(rehearse, rehearse_ratio)
    folder = run(
        base,
        data,
        output,
        optimization=Optimization(
            optimizer=optimizer.value,
            rho=rho,
            lr=lr,
            epochs=epochs,
            steps=steps,
            batch_size=batch_size,
            accumulate=accumulate,
            lora=lora,
        ),
        rehearsal=rehearsal,
        seed=seed,
        data_options=DataOptions(max_length=max_length, limit=limit),
        load_options=LoadOptions(device=device, trust_remote_code=trust_remote_code),
        saving=Saving(save_every=save_every, keep_trajectory=keep_trajectory),
        progress=not quiet,
    )
    record = read_json(folder / "landscape.json")
    losses, where = record["losses"], record["evaluated_on"]["source"]
    before, after = losses["evaluated_before"], losses["evaluated_after"]
    print(f"{record['steps_taken']} steps; loss on {where}: {float(before):.4f} before, {float(after):.4f} after")
    print(f"wrote {folder}", file=sys.stderr)

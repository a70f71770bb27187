"""`landscape finetune`: a checkpoint tuned with AdamW, SAM or adaptive SAM."""

from __future__ import annotations

from pathlib import Path

from landscape.cli.checks import check_inputs, check_new_checkpoint
from landscape.cli.options.checkpoints import StartingCheckpoint
from landscape.cli.options.data import Limit, MaxLength, Rehearse, RehearseRatio, Seed, TrainingData
from landscape.cli.options.model import Device, Trust
from landscape.cli.options.output import Json, OutputCheckpoint, Quiet
from landscape.cli.options.training import (
    Accumulate,
    BatchSize,
    Epochs,
    Guide,
    GuideWeight,
    KeepTrajectory,
    LearningRate,
    Lora,
    Optimizer,
    Rho,
    SaveEvery,
    Steps,
)
from landscape.cli.tables import print_json, print_written, quiet_libraries
from landscape.errors import InputError, nearest_path


def finetune(
    base: StartingCheckpoint,
    data: TrainingData,
    output: OutputCheckpoint,
    seed: Seed = 0,
    rehearse: Rehearse = None,
    rehearse_ratio: RehearseRatio = None,
    limit: Limit = None,
    max_length: MaxLength = 512,
    optimizer: Optimizer = "adamw",
    rho: Rho = None,
    lr: LearningRate = 1e-5,
    epochs: Epochs = 1.0,
    steps: Steps = None,
    batch_size: BatchSize = 16,
    accumulate: Accumulate = 1,
    lora: Lora = None,
    guide: Guide = None,
    guide_weight: GuideWeight = None,
    save_every: SaveEvery = 200,
    keep_trajectory: KeepTrajectory = None,
    device: Device = "auto",
    trust_remote_code: Trust = False,
    json_output: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fine-tune a checkpoint with AdamW or with one of four forms of SAM.

    The result is a Hugging Face checkpoint folder with one more file, landscape.json, which records the settings and
    the losses. An interrupted run continues when the same command is given again.

        landscape finetune base --data tasks.jsonl --optimizer sam -o runs/sam
        landscape finetune base --data tasks.jsonl --lora 16 --lr 2e-4 -o runs/lora
        landscape finetune base --data tasks.jsonl --rehearse alpaca.jsonl -o runs/both
    """
    if optimizer == "adamw" and rho is not None:
        raise InputError("--rho is the radius of SAM's ascent step; it does not go with --optimizer adamw.")
    if rehearse is None and rehearse_ratio is not None:
        raise InputError("--rehearse-ratio is a share of old data, but --rehearse names none.")
    if batch_size % accumulate:
        raise InputError(f"--batch-size {batch_size} does not divide into --accumulate {accumulate} equal parts.")
    if guide is None and guide_weight is not None:
        raise InputError("--guide-weight is the factor of a vector, but --guide names none.")
    if guide is not None and not Path(guide).is_file():
        raise InputError(f"there is no file {guide}.{nearest_path(guide)}")
    check_new_checkpoint(output)
    check_inputs([base], [f"data={data}", *([] if rehearse is None else [f"rehearse={rehearse}"])], output)
    quiet_libraries()
    from landscape.checkpoints import LoadOptions
    from landscape.data.tokens import DataOptions
    from landscape.results import read_json
    from landscape.training.finetuning import finetune as run
    from landscape.training.options import Guidance, Optimization, Rehearsal, Saving

    rehearsal = None
    if rehearse is not None:
        rehearsal = Rehearsal(rehearse) if rehearse_ratio is None else Rehearsal(rehearse, rehearse_ratio)
    guidance = None
    if guide is not None:
        from landscape.instruction_vectors.result import InstructionVector

        vector = InstructionVector.load(guide)
        digest = (vector.provenance.checkpoint or {}).get("digest", "")
        factor = 1.0 if guide_weight is None else guide_weight
        guidance = Guidance(tuple(vector.vector.tolist()), vector.layer, digest, vector.task, factor)
    folder = run(
        base,
        data,
        output,
        optimization=Optimization(
            optimizer=optimizer,
            rho=rho,
            lr=lr,
            epochs=epochs,
            steps=steps,
            batch_size=batch_size,
            accumulate=accumulate,
            lora=lora,
        ),
        rehearsal=rehearsal,
        guidance=guidance,
        seed=seed,
        data_options=DataOptions(max_length=max_length, limit=limit),
        load_options=LoadOptions(device=device, trust_remote_code=trust_remote_code),
        saving=Saving(save_every=save_every, keep_trajectory=keep_trajectory),
        progress=not quiet,
    )
    record = read_json(folder / "landscape.json")
    if json_output:
        print_json({"output": str(folder), **record})
    else:
        losses, evaluated = record["losses"], record["evaluated_on"]
        before, after = float(losses["evaluated_before"]), float(losses["evaluated_after"])
        kind = "held-out examples" if evaluated.get("held_out") else "training examples"
        which = f"at most {evaluated['limit']} {kind} of {evaluated['source']}"
        print(f"{record['steps_taken']} steps; loss on {which}: {before:.4f} before, {after:.4f} after")
    print_written(folder)

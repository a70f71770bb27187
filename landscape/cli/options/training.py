"""Options of `landscape finetune` and `landscape merge`."""

from __future__ import annotations

from typing import Annotated, Literal

from landscape.cli.options.declaring import TRAINING, at_least, between, choice, value

OptimizerName = Literal["adamw", "sam", "asam", "sam-on", "functional-sam"]

Alpha = Annotated[
    float,
    value(
        TRAINING,
        "--alpha",
        "X",
        "Share of the tuned weights in the merged weights, from 0 to 1.",
        callback=at_least(0, 1),
    ),
]
Optimizer = Annotated[
    OptimizerName,
    choice(
        TRAINING,
        "--optimizer",
        OptimizerName,
        "Optimizer: AdamW alone, or AdamW with sharpness-aware minimization (sam), its adaptive form (asam), the form "
        "that moves normalization layers alone (sam-on) or the one that leaves the statistics of the logits out "
        "(functional-sam).",
    ),
]
Rho = Annotated[
    float | None,
    value(
        TRAINING,
        "--rho",
        "RADIUS",
        "Radius of the ascent step of all but adamw, in the l2 norm over the weights that move. Default: 0.5 for asam, "
        "0.05 for the others.",
        callback=at_least(0),
    ),
]
LearningRate = Annotated[
    float,
    value(
        TRAINING,
        "--lr",
        "RATE",
        "Peak learning rate. It rises during the first 5% of the steps and then falls linearly to 0.",
        callback=between(0),
    ),
]
Epochs = Annotated[
    float, value(TRAINING, "--epochs", "X", "Number of passes over the training data.", callback=between(0))
]
Steps = Annotated[
    int | None,
    value(TRAINING, "--steps", "N", "Number of optimizer steps. Takes the place of --epochs.", callback=at_least(1)),
]
BatchSize = Annotated[int, value(TRAINING, "--batch-size", "N", "Examples per optimizer step.", callback=at_least(1))]
Accumulate = Annotated[
    int,
    value(
        TRAINING,
        "--accumulate",
        "N",
        "Number of parts that each batch is split into; only one part is in memory at a time.",
        callback=at_least(1),
    ),
]
Lora = Annotated[
    int | None,
    value(
        TRAINING,
        "--lora",
        "RANK",
        "Train a LoRA adapter of this rank on all linear layers except the output layer, instead of all weights.",
        callback=at_least(1),
    ),
]
SaveEvery = Annotated[
    int,
    value(
        TRAINING,
        "--save-every",
        "N",
        "Steps between the training states that an interrupted run continues from.",
        callback=at_least(1),
    ),
]
Guide = Annotated[
    str | None,
    value(
        TRAINING,
        "--guide",
        "FILE",
        "Instruction vector of the base that guides the training: a file that `landscape instruction-vectors BASE` "
        "wrote. The loss gets the KL divergence from the base's predictions with the vector, at the end of prompts.",
    ),
]
GuideWeight = Annotated[
    float | None,
    value(TRAINING, "--guide-weight", "X", "Factor of that divergence in the loss. Default: 1.", callback=between(0)),
]
KeepTrajectory = Annotated[
    int | None,
    value(
        TRAINING,
        "--keep-trajectory",
        "N",
        "Keep N evenly spaced checkpoints of the run, for `landscape plot --kind trajectory`.",
        callback=at_least(1),
    ),
]

"""From a base model to the trade-off: what AdamW and SAM learn of code, and forget of the docs they came from.

python examples/sam_vs_adamw.py runs

Everything is made under the folder named, from built-in data, in a few minutes on two cores. Started again after an
interruption it continues where it was. Bring your own base: python examples/sam_vs_adamw.py runs BASE
"""

import dataclasses
import sys
from pathlib import Path

import landscape
from landscape import DataOptions, Optimization, Saving, finetune
from landscape.checkpoints.merging import merge_checkpoints
from landscape.study.demo import tiny_llama, train_tokenizer
from landscape.surfaces.compute import compute_trajectory
from landscape.surfaces.kinds.trajectory import trajectory_sources

OLD, NEW = "builtin:docs", "builtin:code"
LENGTH = 128  # tokens of an example


def main(folder: str, base: str | None = None, steps: int = 150) -> None:
    runs = Path(folder)
    options = DataOptions(max_length=LENGTH)
    if base is None:
        if not (runs / "random").exists():
            tokenizer = train_tokenizer()
            landscape.save_checkpoint(tiny_llama(len(tokenizer), seed=0), tokenizer, runs / "random")
        pretraining = Optimization(lr=3e-3, steps=steps, batch_size=32)
        base = str(finetune(runs / "random", OLD, runs / "base", optimization=pretraining, data_options=options))

    # The same data, order and number of steps; SAM takes two gradients a step.
    adamw = Optimization(optimizer="adamw", lr=1e-3, steps=max(4, steps // 3), batch_size=32)
    sam = dataclasses.replace(adamw, optimizer="sam", rho=0.05)
    saving = Saving(keep_trajectory=4)
    tuned = [
        finetune(base, NEW, runs / "adamw", optimization=adamw, data_options=options, saving=saving),
        finetune(base, NEW, runs / "sam", optimization=sam, data_options=options, saving=saving),
    ]

    # Both losses along the line from the base (0) to each tuned model (1): a model merged with alpha lies at alpha.
    start = landscape.load_checkpoint(base)
    ends = [landscape.load_checkpoint(folder) for folder in tuned]
    data = {
        name: landscape.load_data(source, start.tokenizer, max_length=LENGTH, limit=32)  # of the held-out part
        for name, source in (("old: docs", OLD), ("new: code", NEW))
    }
    lines = []
    for end in ends:
        for name, tokens in data.items():
            line = landscape.compute_interpolation(start, end, tokens, points=9)
            lines.append(dataclasses.replace(line, data=name))
    landscape.plot_surfaces(lines).savefig(runs / "tradeoff.png")

    print(f"{'':24}{'base':>10}{'alpha 0.5':>12}{'tuned':>10}   loss, nats per token")
    for line in lines:
        losses = dict(zip(line.axes[0].tolist(), line.loss.tolist(), strict=True))
        print(f"{line.name.split()[-1]:>10} {line.data:>12} {losses[0.0]:10.4f}{losses[0.5]:12.4f}{losses[1.0]:10.4f}")
    merge_checkpoints(base, tuned[1], 0.5, runs / "sam-merged")

    # Where SAM's run went, on the plane nearest to its path.
    path = [landscape.load_checkpoint(source) for source in trajectory_sources([tuned[1]])]
    surface = compute_trajectory(path, data["new: code"], points=9)
    landscape.plot_surfaces([surface]).savefig(runs / "trajectory.png")
    print(surface)
    print(f"Look at {runs / 'tradeoff.png'} and {runs / 'trajectory.png'}; the merged model is {runs / 'sam-merged'}.")


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:]))

"""The loss of instruction data: our batches and logits against `model(**batch).loss` over the data in order.

What every peer does is the plain call on padded batches in data order, which computes a row of logits for every
position. Ours sorts by length, packs to a token budget and computes logits at supervised positions only. Both run in
one process, alternating A B A B; medians are printed as a ratio, after the values are shown to agree.

    python benchmarks/loss.py [--width 256] [--layers 4] [--rounds 5]
"""

import argparse
import statistics
import time

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from landscape.data.tokens import IGNORED, Example, TokenData, pad_examples
from landscape.objective.objective import Objective


def instruction_examples(count: int, vocabulary: int) -> list[Example]:
    """Mixed lengths (lognormal around 100 tokens), the last 40% of each supervised."""
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.lognormal(4.6, 0.7, count), 16, 512).astype(int)
    examples = []
    for length in lengths:
        ids = tuple(generator.integers(1, vocabulary, length).tolist())
        prompt = int(0.6 * length)
        examples.append(Example(ids, (IGNORED,) * prompt + ids[prompt:]))
    return examples


def plain(model: LlamaForCausalLM, examples: list[Example], rows: int) -> float:
    """Token-weighted mean of the model's own loss over padded batches in data order."""
    total = weight = 0.0
    with torch.no_grad():
        for start in range(0, len(examples), rows):
            batch = pad_examples(examples[start : start + rows])
            count = float((batch["labels"][:, 1:] != IGNORED).sum())
            total += float(model(**batch).loss) * count
            weight += count
    return total / weight


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=options.vocabulary,
        hidden_size=options.width,
        intermediate_size=4 * options.width,
        num_hidden_layers=options.layers,
        num_attention_heads=8,
        max_position_embeddings=512,
    )
    model = LlamaForCausalLM(config).eval()
    examples = instruction_examples(64, options.vocabulary)
    objective = Objective(model, TokenData("benchmark", tuple(examples), batch_tokens=2048))

    timed: dict[str, list[float]] = {"plain": [], "ours": []}
    values = {}
    for _ in range(options.rounds):
        for name, run in (("plain", lambda: plain(model, examples, rows=8)), ("ours", lambda: objective.loss().mean)):
            started = time.perf_counter()
            values[name] = run()
            timed[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(seconds) for name, seconds in timed.items()}
    difference = abs(values["ours"] / values["plain"] - 1)
    print(f"{options.width} wide, {options.layers} layers, vocabulary {options.vocabulary}, 64 examples")
    print(f"plain {medians['plain']:.3f} s, ours {medians['ours']:.3f} s: {medians['plain'] / medians['ours']:.2f}x")
    print(f"values agree to {difference:.1e} relative")


if __name__ == "__main__":
    main()

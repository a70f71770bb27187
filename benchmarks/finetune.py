"""SAM over AdamW: processor time of a step and peak memory, in one process, alternating A B A B; medians as ratios.

    python benchmarks/finetune.py [--width 384] [--layers 6] [--tokens 1024] [--rounds 7]

optimizer  SAM(AdamW).step(closure) over AdamW's step on the same batch
trainer    a step of SAMTrainer over one of Trainer, four micro-batches accumulated
memory     peak of what torch allocates within a step of each optimizer, the difference in copies of the weights

The target is 2.1 for time and one copy for memory: two gradients instead of one, and the weights to come back to.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from landscape import SAM, SAMTrainer

LENGTH, PARTS = 128, 4


def build(options: argparse.Namespace) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=options.width,
        intermediate_size=4 * options.width,
        num_hidden_layers=options.layers,
        num_attention_heads=8,
        max_position_embeddings=LENGTH,
    )
    return LlamaForCausalLM(config)


def rows_of(options: argparse.Namespace, count: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 8192, (count, LENGTH), generator=generator)
    return [{"input_ids": row, "labels": row} for row in ids]


def optimizer_step(options: argparse.Namespace, optimizer: str) -> Callable[[], object]:
    model = build(options)
    ids = torch.stack([row["input_ids"] for row in rows_of(options, options.tokens // LENGTH)])
    kind = torch.optim.AdamW
    chosen = SAM(model.parameters(), kind, rho=0.05, lr=1e-5) if optimizer == "sam" else kind(model.parameters(), 1e-5)

    def closure() -> torch.Tensor:
        chosen.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        return loss

    return lambda: chosen.step(closure)


def peak_bytes(step: Callable[[], object]) -> int:
    """The most that torch's CPU allocator holds during one step, above what it held before, gradients included."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    events = record.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return max(itertools.accumulate(change for _, change in changes))


class Steps(TrainerCallback):
    """Seconds of every step of the Trainer but the first."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *_: object, **__: object) -> None:
        self._started = time.process_time()

    def on_step_end(self, args: object, state: object, control: object, **_: object) -> None:
        if state.global_step > 1:  # type: ignore[attr-defined]
            self.seconds.append(time.process_time() - self._started)


def trainer_steps(options: argparse.Namespace, optimizer: str, folder: str, steps: Steps) -> Callable[[], object]:
    rows = options.tokens // LENGTH
    arguments = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=max(1, rows // PARTS),
        gradient_accumulation_steps=PARTS,
        max_steps=2,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    given = {"model": build(options), "args": arguments, "train_dataset": rows_of(options, 4 * rows)}
    trainer = SAMTrainer(**given, callbacks=[steps]) if optimizer == "sam" else Trainer(**given, callbacks=[steps])
    trainer.remove_callback(PrinterCallback)
    return trainer.train


def alternate(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each, A B A B; the first round warms up and is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            started = time.process_time()
            run()
            if turn:
                seconds[name].append(time.process_time() - started)
    return seconds


def report(what: str, seconds: dict[str, list[float]]) -> None:
    ratios = sorted(sam / adamw for adamw, sam in zip(seconds["adamw"], seconds["sam"], strict=True))
    middle = {name: statistics.median(taken) for name, taken in seconds.items()}
    print(
        f"{what:10} AdamW {middle['adamw']:.3f} s   SAM {middle['sam']:.3f} s   "
        f"ratio {middle['sam'] / middle['adamw']:.2f} (pairs {ratios[0]:.2f} to {ratios[-1]:.2f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=1024, help="tokens of a step, all micro-batches together")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    weights = sum(p.numel() * p.element_size() for p in build(options).parameters())
    print(f"{weights / 2**20:.0f} MiB of float32 weights, {options.tokens} tokens a step")
    both = ("adamw", "sam")
    runs = {name: optimizer_step(options, name) for name in both}
    report("optimizer", alternate(runs, options.rounds))
    peak = {name: peak_bytes(run) for name, run in runs.items()}
    more = (peak["sam"] - peak["adamw"]) / weights
    megabytes = {name: bytes_ / 2**20 for name, bytes_ in peak.items()}
    print(f"memory     AdamW {megabytes['adamw']:.0f} MiB   SAM {megabytes['sam']:.0f} MiB   {more:.2f} copies more")
    steps = {name: Steps() for name in both}
    with tempfile.TemporaryDirectory() as folder:
        alternate({name: trainer_steps(options, name, folder, steps[name]) for name in both}, options.rounds)
    report("trainer", {name: steps[name].seconds[1:] for name in both})


if __name__ == "__main__":
    main()

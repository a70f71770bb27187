"""The names of heights and what they mean, for the command line, which lists them before torch is imported."""

from __future__ import annotations

from collections.abc import Sequence

LOSS = "loss"  # every surface has it, so that naming it alone asks for nothing more

HEIGHT_NAMES = {
    LOSS: "the loss in nats per token",
    "accuracy": "the share of questions answered rightly, or of tokens predicted rightly where there are no questions",
    "choice": "the log-probability of the right choice among all choices of its question",
    "kl": "the divergence KL(centre || point) of the predictions",
}


def parse_heights(text: str) -> list[str]:
    """Return the heights in a list with commas, each once.

    Example:
        >>> parse_heights("loss, accuracy,accuracy")
        ['loss', 'accuracy']
    """
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def benchmark_names(heights: Sequence[str]) -> list[str]:
    """Return those of the heights that are no names of ours, and so are tasks of lm-evaluation-harness."""
    return [name for name in heights if name not in HEIGHT_NAMES]

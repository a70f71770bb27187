"""Sharpness of any torch model: a classifier of scikit-learn's digits, and a tiny language model.

python examples/compute_sharpness.py
"""

import sys

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import landscape

METRICS = {
    "worst_case": {"rho": 0.05},
    "average_case": {"rho": 0.05, "adaptive": True},
    "gradient_norm": {},
    "fisher_rao": {},
    "top_eigenvalue": {"curvature": "ggn"},
    "trace": {"curvature": "ggn", "rtol": 0.1},
}


def table(name: str, model: nn.Module, data: list) -> None:
    """One line per metric; standard errors where the metric samples, residuals where it iterates."""
    print(f"{name}: {sum(p.numel() for p in model.parameters()):,} parameters")
    for metric, options in METRICS.items():
        found = landscape.compute_sharpness(model, data, metric=metric, seed=0, **options)
        error = found.stderr if found.stderr is not None else found.details.get("residual")
        print(f"  {metric:<15} {found.value:10.4g}" + ("" if error is None else f" +- {error:.2g}"))
    print(f"  loss            {found.loss:10.4g} over {found.weight:.0f} terms")


def digits() -> tuple[nn.Module, list]:
    """A classifier with two hidden layers, trained for a few seconds, and its data in batches."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        sys.exit("this example needs scikit-learn: pip install scikit-learn")
    inputs, targets = load_digits(return_X_y=True)
    inputs, targets = torch.tensor(inputs, dtype=torch.float32) / 16, torch.tensor(targets)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    # (inputs, targets) pairs: cross-entropy is the default loss; supervised_loss(criterion) wraps others
    return model, list(zip(inputs.split(256), targets.split(256), strict=True))


def language_model() -> tuple[nn.Module, list]:
    """A tiny Llama that has learnt to count, and batches as transformers takes them."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    ids = (torch.arange(16)[None, :] * torch.tensor([1, 3, 5, 7])[:, None]) % 32
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    return model, [{"input_ids": ids[:2], "labels": ids[:2]}, {"input_ids": ids[2:], "labels": ids[2:]}]


if __name__ == "__main__":
    table("digits", *digits())
    table("language model", *language_model())

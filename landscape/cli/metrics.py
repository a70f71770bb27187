"""`landscape metrics`: what the sharpness metrics are, what they cost, and which options they have."""

from __future__ import annotations

import inspect
from typing import Any

from landscape.cli.options.metrics import MetricName
from landscape.cli.options.output import Json
from landscape.cli.tables import open_console, print_json
from landscape.errors import InputError, nearest
from landscape.sharpness.options import declared_metrics

LABELS = {"formula": "formula", "options": "options", "cost": "cost", "invariance": "unchanged by", "source": "source"}

# What `landscape measure` knows beside the sharpness metrics: description, cost, source.
_ONLY_MEASURED = {
    "surface": (
        "Curvature and gradients of the loss surface along random directions.",
        "one loss for each grid point",
        "Li et al. 2018",
    ),
    "basin": (
        "How far weights can move along random rays before the loss or the accuracy has become worse by `drop`.",
        "some losses for each ray",
        "Chen et al. 2025",
    ),
    "own_kl": (
        "KL of base and checkpoint on what the base itself says to the prompts of the data. The base completes each "
        "prompt once, at temperature 1 and with at most `max_new_tokens` tokens. It needs records with a prompt and a "
        "completion, or chats, in the old or in the new data.",
        "one completion of each prompt by the base, and two losses",
        "Shenfeld et al. 2025",
    ),
    "instruction_vector": (
        "What tuning changed of the instruction vectors of in-context tasks. It needs `tasks`: a .jsonl file of "
        "records {task, input, output}, or builtin:words. The columns are means over the tasks: "
        "instruction_vector_cosine of the vectors of base and checkpoint, instruction_vector_heads_kept of the base's "
        "heads, instruction_vector_effect_lost by them, and the share of right answers that was lost with and without "
        "examples in the prompt, accuracy_loss_few_shot and accuracy_loss_zero_shot. `landscape instruction-vectors` "
        "gives all of them task by task, with intervals.",
        "for each task, the last token of each prompt once for every head; the base's are measured once",
        "Jiang et al. 2024",
    ),
}


def metrics(name: MetricName = None, json_output: Json = False) -> None:
    """List the sharpness metrics: formula, options with their defaults, cost, and what leaves the value unchanged.

    With a NAME, the command explains that metric in full. A metric and its options are given to other commands as
    NAME:option=value,option=value:

        landscape sharpness runs/sam --metric worst_case:rho=0.1,steps=1
    """
    if name is None:
        print_metrics(json_output)
        return
    names = [*declared_metrics(), *_ONLY_MEASURED]
    if name not in names:
        raise InputError(f"{name!r} is none of the metrics {', '.join(names)}.{nearest(name, names)}")
    described = describe_metrics()
    if json_output:
        print_json(described[name])
    else:
        _print_metric(name, described[name], is_whole=True)


def describe_metrics() -> dict[str, dict[str, Any]]:
    """What the registry says of every metric, by name."""
    from landscape.sharpness import SHARPNESS_METRICS
    from landscape.study.request import BASIN_OPTIONS, INSTRUCTION_OPTIONS, OWN_KL_OPTIONS, SURFACE_OPTIONS

    described: dict[str, dict[str, Any]] = {}
    for name, metric in SHARPNESS_METRICS.items():
        documentation = inspect.getdoc(metric.measure) or ""
        described[name] = {
            "name": name,
            "description": getattr(metric, "description", "") or documentation.partition("\n")[0],
            "formula": getattr(metric, "formula", ""),
            "options": metric.options,
            "cost": getattr(metric, "cost", ""),
            "invariance": metric.invariance,
            "source": getattr(metric, "source", ""),
            "needs_base": metric.needs_base,
            "documentation": documentation,
        }
    options = {
        "surface": SURFACE_OPTIONS,
        "basin": BASIN_OPTIONS,
        "own_kl": OWN_KL_OPTIONS,
        "instruction_vector": INSTRUCTION_OPTIONS,
    }
    for name, (description, cost, source) in _ONLY_MEASURED.items():
        described[name] = {
            "name": name,
            "description": f"{description.partition('. ')[0].removesuffix('.')}; only in `landscape measure`.",
            "formula": "",
            "options": options[name],
            "cost": cost,
            "invariance": "",
            "source": source,
            "needs_base": name in ("own_kl", "instruction_vector"),
            "documentation": description,
        }
    return described


def print_metrics(json_output: bool = False) -> None:
    """Print every metric in a few lines each, or all of them as JSON."""
    described = describe_metrics()
    if json_output:
        print_json({"metrics": list(described.values())})
        return
    for name, description in described.items():
        _print_metric(name, description, is_whole=False)
    print("`landscape metrics NAME` explains one metric in full. L is the loss, w the weights, g and H its gradient")
    print("and Hessian at w.")


def _print_metric(name: str, described: dict[str, Any], *, is_whole: bool) -> None:
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    console = open_console()
    console.print(Text(name, style="bold"))
    if not is_whole:
        console.print(Padding(Text(described["description"]), (0, 0, 0, 2), expand=False))
    grid = Table.grid(padding=(0, 2))
    for key, label in LABELS.items():
        if text := _as_text(described[key]):
            grid.add_row(Text(label, style="dim"), Text(text))
    if described["needs_base"]:
        where = "the first argument of `landscape measure`" if name in _ONLY_MEASURED else "--base"
        grid.add_row(Text("needs", style="dim"), Text(f"the base checkpoint ({where})"))
    console.print(Padding(grid, (0, 0, 0, 2), expand=False))
    if is_whole:
        console.print()
        console.print(Text(described["documentation"]), soft_wrap=True)
    console.print()


def _as_text(value: Any) -> str:
    """A text as it is; options as they are given after `NAME:`."""
    if isinstance(value, str):
        return value
    return ",".join(f"{option}={default}" for option, default in value.items()) or "none"

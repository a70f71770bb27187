"""What `measure_checkpoints` is asked for: which metrics, with which options, and where its table goes.

Nothing here imports torch, so that a command can refuse a mistyped metric at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from landscape.errors import InputError, as_typed, nearest
from landscape.sharpness.options import Described, check_name, check_options
from landscape.surfaces.options import MOST_POINTS

Metrics = Sequence[str | tuple[str, Mapping[str, Any]]]

SURFACE_OPTIONS: dict[str, Any] = {"dim": 2, "points": 11, "span": 1.0, "normalize": "filter"}
BASIN_OPTIONS: dict[str, Any] = {"height": "loss", "drop": None, "directions": 8, "normalize": "filter"}
OWN_KL_OPTIONS: dict[str, Any] = {"max_new_tokens": 64}
INSTRUCTION_OPTIONS: dict[str, Any] = {"tasks": None, "shots": 10, "prompts": 32, "heads": 10}
NORMALIZATIONS = ("filter", "unit", "head", "layer", "none")  # a test compares them with the room of weights
# Cheap, and of every kind: the SAM family, noise, curvature, what rescaling does not move, the picture's numbers.
DEFAULT_METRICS: Metrics = (
    ("worst_case", {"steps": 1}),
    ("worst_case", {"steps": 1, "adaptive": True, "rho": 0.5}),
    ("average_case", {"adaptive": True}),
    "gradient_norm",
    "fisher_rao",
    ("top_eigenvalue", {"rtol": 0.01, "max_matvecs": 100}),
    ("trace", {"rtol": 0.1, "max_probes": 200}),
    ("adaptive_trace", {"rtol": 0.1, "max_probes": 200}),
    "displacement_curvature",
    "surface",
)


def chosen_metrics(metrics: Metrics, known: Mapping[str, Described]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return name and all options of each metric, by its column: options are in the column where two differ in them.

    Args:
        metrics: Names of metrics, or names with options.
        known: The sharpness metrics that there are; `surface`, `basin`, `own_kl` and `instruction_vector` are known
            beside them.

    Raises:
        InputError: There is no metric, or a name, an option or a value that does not exist.
    """
    asked: list[tuple[str, dict[str, Any]]] = []
    for given in metrics:
        name, options = (given, {}) if isinstance(given, str) else given
        one = (name, _checked(name, dict(options), known))
        if one not in asked:
            asked.append(one)
    if not asked:
        raise InputError("there is no metric to measure.")
    columns = {}
    for name, options in asked:
        others = [o for n, o in asked if n == name]
        apart = [option for option, value in options.items() if any(other[option] != value for other in others)]
        columns["-".join([name, *(f"{option}_{str(options[option]).lower()}" for option in apart)])] = (name, options)
    return columns


def _checked(name: str, options: dict[str, Any], known: Mapping[str, Described]) -> dict[str, Any]:
    """Return all options of a metric. Raises InputError for names, options and values that it does not have."""
    others = {
        "surface": (SURFACE_OPTIONS, _checked_surface),
        "basin": (BASIN_OPTIONS, _checked_basin),
        "own_kl": (OWN_KL_OPTIONS, _checked_own_kl),
        "instruction_vector": (INSTRUCTION_OPTIONS, _checked_instruction_vector),
    }
    check_name(name, [*known, *others])
    if name not in others:
        return check_options(name, options, known=known, has_base=True)
    has, check = others[name]
    unknown = [option for option in options if option not in has]
    if unknown:
        raise InputError(
            f"{as_typed('metric', name)} has no option {unknown[0]}; it has {', '.join(has)}.{nearest(unknown[0], has)}"
        )
    return check(options)


def _checked_own_kl(options: dict[str, Any]) -> dict[str, Any]:
    """Return all options of the divergence on own samples."""
    options = OWN_KL_OPTIONS | options
    value = options["max_new_tokens"]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"max_new_tokens={value!r} of metric 'own_kl' must be a whole number of at least 1.")
    return options


def _checked_instruction_vector(options: dict[str, Any]) -> dict[str, Any]:
    """Return all options of instruction vectors."""
    from landscape.instruction_vectors.tasks import check_tasks_source  # with it comes numpy, and the help waits

    options = INSTRUCTION_OPTIONS | options
    if not isinstance(options["tasks"], str):
        raise InputError(f"{as_typed('metric', 'instruction_vector')} needs tasks=FILE, a file of in-context tasks.")
    check_tasks_source(options["tasks"])
    for option, least in (("shots", 2), ("prompts", 2), ("heads", 1)):
        value = options[option]
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise InputError(
                f"{option}={value!r} of metric 'instruction_vector' must be a whole number of at least {least}."
            )
    return options


def _checked_basin(options: dict[str, Any]) -> dict[str, Any]:
    """Return all options of a basin."""
    height, drop, directions, normalize = (BASIN_OPTIONS | options).values()
    is_count = isinstance(directions, int) and not isinstance(directions, bool)
    is_number = isinstance(drop, (int, float)) and not isinstance(drop, bool)
    for option, is_valid, rule in (
        ("height", height in ("loss", "accuracy"), "loss or accuracy"),
        ("drop", drop is None or (is_number and 0 < drop < math.inf), "a positive number"),
        ("directions", is_count and directions >= 1, "a whole number of at least 1"),
        ("normalize", normalize in NORMALIZATIONS, f"one of {', '.join(NORMALIZATIONS)}"),
    ):
        if not is_valid:
            raise InputError(f"{option}={options[option]!r} of metric 'basin' must be {rule}.")
    return BASIN_OPTIONS | options


def _checked_surface(options: dict[str, Any]) -> dict[str, Any]:
    """Return all options of a surface."""
    dim, points, span, normalize = (SURFACE_OPTIONS | options).values()
    is_count = isinstance(points, int) and not isinstance(points, bool)
    total = points**dim if is_count and dim in (1, 2) else 0
    for option, is_valid, rule in (
        ("dim", dim in (1, 2), "1 or 2"),
        ("points", is_count and points >= 3, "a whole number of at least 3"),
        ("points", total <= MOST_POINTS, f"small enough for {MOST_POINTS:,} points in all"),
        ("span", isinstance(span, (int, float)) and 0 < span < math.inf, "one positive number for all checkpoints"),
        ("normalize", normalize in NORMALIZATIONS, f"one of {', '.join(NORMALIZATIONS)}"),
    ):
        if not is_valid:
            raise InputError(f"{option}={options[option]!r} of metric 'surface' must be {rule}.")
    return SURFACE_OPTIONS | options


def cells_folder(output: Path) -> Path:
    """Return the folder beside a table that keeps the finished measurements."""
    return output.with_name(f"{output.name}.cells")


def check_table_path(output: Path) -> None:
    """Raise InputError where a table cannot be written, or belongs to something else."""
    if output.is_dir():
        raise InputError(f"{output} is a folder; the output is a CSV file.")
    if output.exists() and not (cells_folder(output) / "settings.json").exists():
        raise InputError(f"{output} exists and was not made by this command; choose another {as_typed('output')}.")

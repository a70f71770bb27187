"""Loss landscapes, curvature and sharpness of fine-tuned language models."""

# ruff: noqa: F401 - the imports below are the table of contents
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from landscape.answers import ChoiceForgetting
    from landscape.benchmarks import compare_benchmarks, run_benchmarks
    from landscape.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
    from landscape.choices import Questions, load_questions
    from landscape.correlation import correlate
    from landscape.data import TokenData, load_data
    from landscape.directions import (
        Direction,
        difference_direction,
        load_directions,
        random_directions,
        save_directions,
    )
    from landscape.distributed import shared_work
    from landscape.errors import InputError, MeasurementWarning
    from landscape.finetuning import finetune
    from landscape.forgetting import Forgetting, measure_forgetting
    from landscape.hessian import eigen_directions, hessian_density, hessian_eigenvalues, hessian_vector_product
    from landscape.hessian_results import Eigenvalues, LayerCurvature, SpectralDensity, TraceEstimate
    from landscape.layers import hessian_layers
    from landscape.losses import supervised_loss
    from landscape.measure import measure_checkpoints
    from landscape.merging import merge_checkpoints
    from landscape.plotting import (
        correlations_html,
        density_html,
        layers_html,
        plot_correlation_scatter,
        plot_correlations,
        plot_density,
        plot_layers,
        plot_surfaces,
        surfaces_html,
    )
    from landscape.sam import SAM, SAMTrainer
    from landscape.sharpness import SHARPNESS_METRICS, Sharpness, compute_sharpness
    from landscape.surface import auto_span, compute_interpolation, compute_plane, compute_surface
    from landscape.surface_metrics import SurfaceMetrics, compare_metrics
    from landscape.surface_results import Surface
    from landscape.trace import hessian_trace
    from landscape.trajectory import compute_trajectory, trajectory_directions

# Public names in the order a reader needs them, and the module each lives in. Loaded on first use (PEP 562), so
# that `landscape --help` does not wait for torch.
_HOME = {
    "load_checkpoint": "checkpoints",
    "Checkpoint": "checkpoints",
    "save_checkpoint": "checkpoints",
    "load_data": "data",
    "TokenData": "data",
    "supervised_loss": "losses",
    "random_directions": "directions",
    "difference_direction": "directions",
    "Direction": "directions",
    "save_directions": "directions",
    "load_directions": "directions",
    "compute_surface": "surface",
    "compute_interpolation": "surface",
    "compute_plane": "surface",
    "trajectory_directions": "trajectory",
    "compute_trajectory": "trajectory",
    "auto_span": "surface",
    "Surface": "surface_results",
    "SurfaceMetrics": "surface_metrics",
    "compare_metrics": "surface_metrics",
    "plot_surfaces": "plotting",
    "surfaces_html": "plotting",
    "plot_density": "plotting",
    "density_html": "plotting",
    "plot_layers": "plotting",
    "layers_html": "plotting",
    "plot_correlations": "plotting",
    "plot_correlation_scatter": "plotting",
    "correlations_html": "plotting",
    "hessian_eigenvalues": "hessian",
    "hessian_trace": "trace",
    "hessian_density": "hessian",
    "hessian_layers": "layers",
    "hessian_vector_product": "hessian",
    "eigen_directions": "hessian",
    "Eigenvalues": "hessian_results",
    "TraceEstimate": "hessian_results",
    "SpectralDensity": "hessian_results",
    "LayerCurvature": "hessian_results",
    "compute_sharpness": "sharpness",
    "SHARPNESS_METRICS": "sharpness",
    "Sharpness": "sharpness",
    "finetune": "finetuning",
    "measure_forgetting": "forgetting",
    "Forgetting": "forgetting",
    "load_questions": "choices",
    "Questions": "choices",
    "ChoiceForgetting": "answers",
    "run_benchmarks": "benchmarks",
    "compare_benchmarks": "benchmarks",
    "measure_checkpoints": "measure",
    "correlate": "correlation",
    "merge_checkpoints": "merging",
    "SAM": "sam",
    "SAMTrainer": "sam",
    "shared_work": "distributed",
    "InputError": "errors",
    "MeasurementWarning": "errors",
}
__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'landscape' has no attribute {name!r}")
    return getattr(import_module(f"landscape.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})

"""Loss landscapes, curvature and sharpness of fine-tuned language models: the table of contents.

Public names in the order a reader needs them, each with the module it lives in. `landscape/__init__.py` reads this
file: it is the only place where the table is written.
"""

from .checkpoints import load_checkpoint as load_checkpoint
from .checkpoints import Checkpoint as Checkpoint
from .checkpoints import LoadOptions as LoadOptions
from .checkpoints import save_checkpoint as save_checkpoint
from .data.tokens import load_data as load_data
from .data.tokens import DataOptions as DataOptions
from .data.tokens import TokenData as TokenData
from .objective.loss_functions import supervised_loss as supervised_loss
from .objective.scope import Scope as Scope
from .objective.scope import Run as Run
from .weights.directions import random_directions as random_directions
from .weights.directions import difference_direction as difference_direction
from .weights.directions import Direction as Direction
from .weights.directions import save_directions as save_directions
from .weights.directions import load_directions as load_directions
from .surfaces.compute import compute_surface as compute_surface
from .surfaces.compute import compute_interpolation as compute_interpolation
from .surfaces.compute import compute_plane as compute_plane
from .surfaces.path import trajectory_directions as trajectory_directions
from .surfaces.compute import compute_trajectory as compute_trajectory
from .surfaces.points.span import auto_span as auto_span
from .surfaces.measure import measure_surface as measure_surface
from .surfaces.kind import SurfaceKind as SurfaceKind
from .surfaces.kinds import SURFACE_KINDS as SURFACE_KINDS
from .surfaces.result import Surface as Surface
from .surfaces.draws import metrics_over_draws as metrics_over_draws
from .surfaces.metrics import SurfaceMetrics as SurfaceMetrics
from .surfaces.metrics import compare_metrics as compare_metrics
from .plotting.surfaces.figures import plot_surfaces as plot_surfaces
from .plotting.surfaces.figures import surfaces_html as surfaces_html
from .plotting.curvature.figures import plot_density as plot_density
from .plotting.curvature.figures import density_html as density_html
from .plotting.curvature.figures import plot_layers as plot_layers
from .plotting.curvature.figures import layers_html as layers_html
from .plotting.correlation.figures import plot_correlations as plot_correlations
from .plotting.correlation.figures import plot_correlation_scatter as plot_correlation_scatter
from .plotting.correlation.figures import correlations_html as correlations_html
from .curvature.eigenvalues import hessian_eigenvalues as hessian_eigenvalues
from .curvature.trace import hessian_trace as hessian_trace
from .curvature.density import hessian_density as hessian_density
from .curvature.layers import hessian_layers as hessian_layers
from .curvature.products import hessian_vector_product as hessian_vector_product
from .curvature.eigenvalues import eigen_directions as eigen_directions
from .curvature.results import Eigenvalues as Eigenvalues
from .curvature.results import TraceEstimate as TraceEstimate
from .curvature.results import SpectralDensity as SpectralDensity
from .curvature.results import LayerCurvature as LayerCurvature
from .sharpness import compute_sharpness as compute_sharpness
from .sharpness import SHARPNESS_METRICS as SHARPNESS_METRICS
from .sharpness import Sharpness as Sharpness
from .training.finetuning import finetune as finetune
from .training.options import Optimization as Optimization
from .training.options import Rehearsal as Rehearsal
from .training.options import Saving as Saving
from .forgetting.losses import measure_forgetting as measure_forgetting
from .forgetting.losses import Forgetting as Forgetting
from .data.questions import load_questions as load_questions
from .data.questions import Questions as Questions
from .forgetting.answers import ChoiceForgetting as ChoiceForgetting
from .forgetting.harness import run_benchmarks as run_benchmarks
from .forgetting.harness import compare_benchmarks as compare_benchmarks
from .public.fetching import fetch as fetch
from .study.table import measure_checkpoints as measure_checkpoints
from .correlation import correlate as correlate
from .correlation import estimand_table as estimand_table
from .correlation import simulate_design as simulate_design
from .correlation import Resampling as Resampling
from .report import report_html as report_html
from .report import write_report as write_report
from .checkpoints.merging import merge_checkpoints as merge_checkpoints
from .training.sam import SAM as SAM
from .training.sam_trainer import SAMTrainer as SAMTrainer
from .parallel.distributed import shared_work as shared_work
from .errors import InputError as InputError
from .errors import MeasurementWarning as MeasurementWarning

__version__: str

"""Pictures of results. Matplotlib draws figures for papers, and plotly draws pages to look around in.

Each kind of picture has a folder: its public functions are in `figures.py`, `paper.py` and `interactive.py` draw with
one of the two libraries, and the other files (`shared.py`; of surfaces `arrangement.py`, `scale.py` and `captions.py`)
hold what both need. What all kinds share lives here: `basics.py` and `ticks.py` for both libraries, `paper_style.py`
for figures, `interactive_style.py` and `page/` for pages. Neither library is imported before something is drawn.
"""

from landscape.plotting.any_result import plot
from landscape.plotting.correlation.figures import (
    correlations_html,
    plot_correlation_scatter,
    plot_correlations,
    write_correlation_figures,
)
from landscape.plotting.curvature.figures import (
    density_html,
    layers_html,
    plot_density,
    plot_eigenvalues,
    plot_layers,
    plot_trace,
    write_density_figures,
    write_layer_figures,
)
from landscape.plotting.instruction_vectors.figures import (
    instruction_vectors_html,
    plot_instruction_vectors,
    write_instruction_vector_figures,
)
from landscape.plotting.surfaces.arrangement import require_comparable
from landscape.plotting.surfaces.captions import caption_for
from landscape.plotting.surfaces.figures import plot_surfaces, surfaces_html, write_figures

__all__ = [
    "caption_for",
    "correlations_html",
    "density_html",
    "instruction_vectors_html",
    "layers_html",
    "plot",
    "plot_correlation_scatter",
    "plot_correlations",
    "plot_density",
    "plot_eigenvalues",
    "plot_instruction_vectors",
    "plot_layers",
    "plot_surfaces",
    "plot_trace",
    "require_comparable",
    "surfaces_html",
    "write_correlation_figures",
    "write_density_figures",
    "write_figures",
    "write_instruction_vector_figures",
    "write_layer_figures",
]

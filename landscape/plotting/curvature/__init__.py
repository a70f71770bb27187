"""Pictures of curvature, as a spectrum and by layer. The public functions are in `figures.py`."""

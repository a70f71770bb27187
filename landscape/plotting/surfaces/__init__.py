"""Pictures of loss surfaces. The public functions are in `figures.py`."""

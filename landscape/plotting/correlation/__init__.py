"""Pictures of how flatness goes with forgetting. The public functions are in `figures.py`."""

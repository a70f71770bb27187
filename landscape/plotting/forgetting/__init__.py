"""Pictures of what tuned checkpoints lost: `interactive.py` draws forgetting by task, and the Pareto front."""

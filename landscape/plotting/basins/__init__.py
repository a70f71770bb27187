"""Pictures of how far a capability holds: `interactive.py` draws the share of directions along which it does."""

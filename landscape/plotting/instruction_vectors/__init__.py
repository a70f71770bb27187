"""Maps of the attention heads that do in-context tasks."""

"""The loss of a model on data and its gradient: token-weighted, in pieces that fit in memory."""

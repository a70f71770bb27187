"""Several checkpoints, several data sets, several measurements: each result kept in a file of its own."""

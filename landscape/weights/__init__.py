"""A model's parameters:
which there are, their filters, as one flat vector, directions among them, exact perturbation and restoring."""

"""Eigenvalues, spectral densities and means by sampling, of any symmetric operator: no model, no processes."""

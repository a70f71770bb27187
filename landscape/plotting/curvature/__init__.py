"""Pictures of eigenvalues, densities and layers: what they share, for papers, for looking around."""

"""The Hessian and the Gauss-Newton matrix of a loss: products, eigenvalues, trace, density, layers, checks."""

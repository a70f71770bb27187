"""The curvature of a model's loss: eigenvalues, trace, density and layers of its Hessian or Gauss-Newton matrix."""

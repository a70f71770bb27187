"""The weights of a model: which tensors they are, how they are moved and brought back, and directions among them.

`parameters` lists a model's distinct tensors and `filters` divides each into filters; `vectors` holds norms and inner
products of tensors by name, `flat` puts them side by side as one vector. `noise` draws seeded noise and `directions`
makes directions of it, or of the difference of two models. `perturbation` moves the weights and restores them exactly;
`preservation` leaves the rest of a model as it was.
"""

"""How far a capability holds: the distance within which a height of a model stays within a drop of its centre.

`radius.py` searches along one ray, `rays.py` says where the rays lead, and `compute.py` measures a model's basin along
all of them. `smoothing.py` bounds what any step of a length can do to the model with noise on its weights, and
`result.py` is what comes out.
"""

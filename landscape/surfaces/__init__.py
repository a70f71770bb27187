"""The loss along lines and over planes in weight space.

`kinds/` has one file for each kind of surface, `kind.py` says what a kind has to provide, and `measure.py` measures a
surface of any kind; `compute.py` has the public functions. `points/` has the coordinates of a surface and evaluates the
loss there. `result.py` is what was measured, and `metrics.py` its numbers.
"""

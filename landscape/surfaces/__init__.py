"""The loss along lines and over planes in weight space.

`kinds/` has one file for each kind of surface, `kind.py` says what a kind has to provide, and `measure.py` measures a
surface of any kind. `points/` has the coordinates of a surface and evaluates the loss there. `result` is what is measured,
and `metrics` its numbers.
"""

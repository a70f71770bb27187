"""Where the points of a surface lie, and the loss there.

`grid` has the coordinates along each axis, and `geometry` the weights that belong to coordinates. `sweep` evaluates the
loss point by point and remembers what is done, and `span` finds how far an axis has to reach.
"""

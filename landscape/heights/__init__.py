"""What a model can do, as a number at a point of weight space: the heights of a surface beside its loss.

`options.py` lists their names, `height.py` says what a height and a pass are, `finding.py` finds a height by its name,
and `reading.py` reads several in as few forward passes as they can share. A family of heights that are read from the
same forward passes has a file: `predictions.py` (next tokens and classes), `answers.py` (choices of questions),
`benchmarks.py` (lm-evaluation-harness) and `given.py` (a function of the caller).
"""

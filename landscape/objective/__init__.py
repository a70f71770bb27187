"""The loss of a model on data and its gradient: token-weighted, and in pieces that fit in memory.

`objective` is the weighted mean loss over a data set, with its `gradients`, and `checks` refuses what means nothing.
`loss_functions` says what a loss is, and `causal` what it is for language models, with `head` for the cross-entropy of
large vocabularies. `subject` is what a measurement is of: a model, its data and its parameters. `given` makes batches
of what a caller gives as data. `identity` says which measurement a result or a journal belongs to.
"""

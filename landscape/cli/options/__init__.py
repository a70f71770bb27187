"""Every argument and option of the command line, declared once: its name, its type, its range, its help and its panel.

A module for each subject: `checkpoints`, `data`, `model`, `measurement`, `metrics`, `surfaces`, `training`,
`statistics` and `output`; `declaring` has what they are declared with. Commands use the declarations as the types of
their parameters and add the default, as in `seed: Seed = 0`. Choices are `Literal` types written out here, because
`--help` must not wait for the modules that define them; a test compares them with those modules.
"""

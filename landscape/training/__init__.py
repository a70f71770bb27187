"""Fine-tuning a checkpoint, with AdamW or with sharpness-aware minimization (SAM).

`finetuning` is a whole run from a checkpoint to a checkpoint, `examples` are those that it trains on and is evaluated
on, `options` are its options that belong together, and `trainer` is the transformers Trainer that it uses. `ascent` is
SAM's step from w to w + eps, `sam` the optimizer around any torch optimizer, and `sam_trainer` the Trainer that takes
the same step. `update` is where an optimizer would go next.
"""

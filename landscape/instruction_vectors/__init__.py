"""The rival explanation of forgetting: the instruction vectors of in-context tasks, and what tuning changed of them.

`tasks` reads in-context tasks (`words` has some); `prompts` makes prompts of them; `runs` runs a model on prompts, with
heads replaced or a vector added; `effects` measures the indirect effect of every head; `vector` makes the vector and
`result` holds it; `change` compares a tuned model with its base, `changed` holds what that gave.
"""

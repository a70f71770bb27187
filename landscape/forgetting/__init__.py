"""What a tuned model lost against its base, on the same examples under both models.

`losses` measures the rise of the loss, the fall of accuracy and the KL divergence; `answers` measures the answers to
questions; `paired` computes the numbers of each example and their intervals, and `shared_prompts` puts the choices of a
question in one row, so that its prompt is evaluated once; `harness` runs benchmarks of lm-evaluation-harness and
compares them, and `task_names` looks up what these are called.
"""

"""What a tuned model lost against its base: losses and KL, answers to questions, lm-evaluation-harness."""

"""Texts and records, where they come from, and how they become batches of tokens."""

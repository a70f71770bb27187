"""Fine-tuning with AdamW or sharpness-aware minimization (SAM)."""

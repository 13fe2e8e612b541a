"""Supervised fine-tuning, and what keeps it from forgetting."""

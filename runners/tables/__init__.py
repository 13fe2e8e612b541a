"""From results to the paper's table: measured beside published, verdicts, claims, and its forms."""

"""What papers propose: one module per method, grouped by family."""

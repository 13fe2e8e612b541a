"""Preference optimisation: methods that learn from which responses to a prompt are better."""

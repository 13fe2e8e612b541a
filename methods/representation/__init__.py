"""Autoencoders and what their codes are held to: priors, divergences, MMD."""

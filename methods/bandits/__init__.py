"""Gaussian bandits with side observations: what a play of one arm tells about others."""

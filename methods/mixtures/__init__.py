"""Mixtures of experts and how they are fitted: EM, gradient EM, gradient descent."""

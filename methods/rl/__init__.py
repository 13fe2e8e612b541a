"""Reinforcement learning with verifiable rewards: a paper's method is the one piece of it that it changes."""

"""Rewards: how good a response to a prompt is, by a rule, a judge or a reward model.

A reward is a function of prompts and responses (text, one response for each prompt) that returns one finite number for
each; `load.load_reward` makes one of settings. Rules for the mini world are in `evals/preference_world.py`.
"""

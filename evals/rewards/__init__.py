"""Rewards: how good a response to a prompt is, by a rule, unit tests, a judge or a reward model.

A reward is a function of prompts and responses (text, one response for each prompt) that returns one number for each;
it may ask for more by the names of its parameters, and return `graded.Graded` for a score with feedback.
`load.load_reward` and `load.load_grader` make one of settings. Rules of generated data are beside them, in
`evals/preference_world.py` and `evals/problem_world.py`.
"""

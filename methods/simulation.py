"""Methods that need no model: estimators, simulations, selectors. Data in, numbers out.

They run with `model=none`, on the data set that `dataset._target_` makes, and what `run` returns is what the table
shows: `regret/10000` is the metric `10000` of `regret`. What they log with a step is drawn as a curve.
"""

from methods.method import Method


class Simulation(Method):
    """Base of methods that need no model. A subclass says which `data` it takes, and implements `run`."""

    kinds = ("none",)

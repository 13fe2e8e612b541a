"""New weights out of the weights of finished runs, without training."""

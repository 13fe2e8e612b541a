"""What is done with the samples of a model, and what it costs."""

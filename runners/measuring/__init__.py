"""What `evaluation:` asks of a run's model, one module for each kind of question."""

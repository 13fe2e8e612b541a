"""Which points to learn from: selection of k of n, and what it is worth when some of them are wrong."""

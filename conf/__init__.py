"""The configuration tree: one YAML per choice, in groups that mirror the code. A package so that it travels."""

"""Pairs with few texts, an embedding that can be worked out by hand, and a run's context for them."""

import numpy as np

from methods.examples import Examples
from methods.kinds.causal import frozen
from tests.models import batches_of

TEXTS = ["a", "b", "c", "d"]
_VECTORS = {"a": [1.0, 0.0], "b": [0.8, 0.6], "c": [0.0, 1.0], "d": [-1.0, 0.5]}
_TOKENS = {"a": [10, 2], "b": [11, 12, 2], "c": [13, 2], "d": [14, 15, 16, 2]}  # 2: end of sequence


def vectors_of(texts):
    """An embedding in the plane."""
    return np.array([_VECTORS[text] for text in texts], dtype=np.float32)


def example_pairs(prompts=(5, 7, 5)):
    """(a, b), (d, a), (b, c), chosen first, each after its prompt; and the texts."""
    texts = ["a", "b", "d", "a", "b", "c"]
    sequences = [[1, prompts[number // 2], *_TOKENS[text]] for number, text in enumerate(texts)]
    return Examples.of(sequences, [2] * 6, [2] * 3, [1.0, 0.0] * 3), texts


class Tokenizer:
    """What the method asks of one."""

    def batch_decode(self, sequences, skip_special_tokens):
        assert skip_special_tokens
        return [next(text for text, tokens in _TOKENS.items() if tokens == list(ids)) for ids in sequences]


class Context:
    """The part of a run's context that `prepare` uses."""

    def __init__(self, reference, examples=None):
        self.reference, self.examples, self.tokenizer = reference, examples or example_pairs()[0], Tokenizer()

    def measure(self, what, values, per, role):
        assert (per, role) == ("token", "reference")
        found = {}
        with frozen(self.reference):
            for batch in batches_of(self.examples).once():
                measured = values(self.reference, batch)
                for example in batch.example_S.tolist():
                    found[example] = measured[batch.example_K == example].double().numpy()
        return np.concatenate([found[example] for example in range(len(self.examples))])

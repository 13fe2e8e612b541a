"""ESCI: does a product of a shop fit a search query exactly, as a substitute, as a complement, or not at all?

C. K. Reddy et al., "Shopping Queries Dataset: A Large-Scale ESCI Benchmark for Improving Product Search", 2022, arXiv
2206.06588. The hub's copy (tasksource/esci) has over half a million test pairs in three languages; here `ITEMS` of the
English ones stand for them, always the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import datasets

LABELS = ("Exact", "Substitute", "Complement", "Irrelevant")  # as the hub's copy spells them

ITEMS = 2000  # ours: chance moves the accuracy of so many by about one point

# The prompt of training too: conf/dataset/esci.yaml.
PROMPT = (
    "Query: {query}\nProduct: {product_title}\n"
    "Is the product an Exact match, a Substitute, a Complement, or Irrelevant?\nAnswer:"
)


def prompt(doc: Mapping[str, Any]) -> str:
    """What the model continues with one of `LABELS`."""
    return PROMPT.format_map(doc)


def english(pairs: datasets.Dataset) -> datasets.Dataset:
    """The `ITEMS` pairs of the locale `us` that come first by a hash of their ID, each once and with a title.

    Neighbours in the data set have the same query, so its first rows would be about very few of them.
    """
    columns = ("example_id", "product_locale", "product_title")
    rows = enumerate(zip(*(list(pairs[column]) for column in columns), strict=True))
    by_id: dict[int, int] = {}
    for index, (example, locale, title) in rows:
        if locale == "us" and title:
            by_id.setdefault(example, index)
    chosen = sorted(by_id, key=lambda example: hashlib.sha256(str(example).encode()).digest())[:ITEMS]
    return pairs.select([by_id[example] for example in chosen])


def score(doc: Mapping[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """acc: the likeliest label is the right one. macro_f1: right and likeliest label, for `macro_f1`."""
    logps = [logp for logp, _ in results]
    likeliest, right = logps.index(max(logps)), LABELS.index(doc["esci_label"])
    return {"acc": float(likeliest == right), "macro_f1": (right, likeliest)}


def macro_f1(pairs: Sequence[tuple[int, int]]) -> float:
    """The mean of the four labels' F1; that of a label which is neither right nor guessed anywhere is 0."""
    from sklearn.metrics import f1_score

    right, likeliest = zip(*pairs, strict=True)
    return float(f1_score(right, likeliest, labels=range(len(LABELS)), average="macro", zero_division=0))

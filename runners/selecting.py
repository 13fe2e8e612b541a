"""`dataset.select`: a selector keeps a part of the training examples, by embeddings that a model makes of them.

The model is the one that training starts from, or the final one of the run that `dataset.select_run` names. What is
embedded is what its output layer sees: of text the mean over the tokens of prompt and response, of several responses
the mean of theirs, of an image the penultimate features. All of it is ours but where an experiment says otherwise.

Legend: N examples (groups of responses), S sequences, D width, K of the N that are kept.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from methods.selection import class_wise
from methods.selection.base import Selector
from runners import record
from runners.checks import selector
from runners.context import build
from runners.errors import UserError

log = logging.getLogger(__name__)

KEPT = "selected.json"


def chosen(
    settings: Mapping[str, Any], embedding_ND: NDArray[np.float64], labels_N: NDArray[np.int64] | None, seed: int
) -> NDArray[np.int64]:
    """Which examples are kept, by `dataset:` settings; ascending [K].

    Args:
        labels_N: of images, which are chosen within each class where the selector's `per_class` says so.
        seed: of what is random in the selector.

    Raises:
        UserError: an embedding that is not finite, or fewer to keep than one (of each class).
    """
    name, count = settings["select"], len(embedding_ND)
    if not np.isfinite(embedding_ND).all():
        raise UserError(f"dataset.select={name}: the model's embeddings of the examples must be finite")
    own = {"_target_": selector(name), **(settings["select_options"] or {})}
    built = build(Selector, "dataset.select", {"dataset.select": own})
    k, random = round(settings["keep"] * count), np.random.default_rng([seed, 11])
    if not built.config.per_class:
        labels_N = None
    least = 1 if labels_N is None else len(np.unique(labels_N))
    if k < least:
        each = "" if labels_N is None else f", one for each of {least} classes"
        raise UserError(f"dataset.keep={settings['keep']}: must keep at least {least} of {count} examples{each}")
    try:
        if labels_N is not None:
            kept = class_wise.select(labels_N, k, lambda of, share: built.select(embedding_ND[of], share, random))
        else:
            kept = built.select(embedding_ND, k, random)
    except ValueError as error:
        raise UserError(f"dataset.select={name}: {error}".replace("method.", "")) from error
    log.info("dataset.select=%s keeps %d of %d examples", name, k, count)
    return np.sort(kept)


def remembered(folder: Path) -> NDArray[np.int64] | None:
    """What a run had chosen before it was interrupted; None: nothing."""
    path = folder / KEPT
    return np.array(json.loads(path.read_text())["kept"], dtype=np.int64) if path.is_file() else None


def remember(folder: Path, kept_K: NDArray[np.int64]) -> None:
    """Write down which examples are kept, counted from 0 in the order of the data set."""
    record.write_json(folder / KEPT, {"kept": kept_K.tolist()})

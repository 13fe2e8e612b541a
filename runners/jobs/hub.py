"""Where models and data sets of the Hugging Face hub stand: in the cache, on the hub, gated, or not to be known."""

import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)

_SECONDS = 5.0  # for each question to the hub
_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")


class Hub:
    """Looks at the cache first, then asks the hub; once it cannot be reached it is not asked again."""

    def __init__(self) -> None:
        self._unreachable = ""
        self.parameters: dict[str, int] = {}  # of models that the hub was asked for

    def where(self, name: str, kind: str, revision: str | None = None) -> str:
        """Where `name` stands, in words. `kind`: model or dataset."""
        snapshot = self.snapshot(name, kind, revision)
        if snapshot is not None and (kind == "dataset" or any(any(snapshot.glob(pattern)) for pattern in _WEIGHTS)):
            return "in the hub cache"
        if kind == "dataset" and _prepared(name).is_dir():
            return "in the cache of prepared data sets"
        partly = "" if snapshot is None else "in the hub cache without its weights; "
        return partly + self._on_hub(name, kind, revision)

    @staticmethod
    def snapshot(name: str, kind: str, revision: str | None = None) -> Path | None:
        """The folder of a revision in the hub's cache; None when there is none."""
        from huggingface_hub import constants

        folder = Path(constants.HF_HUB_CACHE) / f"{kind}s--{name.replace('/', '--')}"
        wanted = revision or "main"
        reference = folder / "refs" / wanted
        commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else wanted
        path = folder / "snapshots" / commit
        return path if path.is_dir() else None

    def _on_hub(self, name: str, kind: str, revision: str | None) -> str:
        from huggingface_hub import HfApi, constants
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

        if constants.HF_HUB_OFFLINE:
            return "MISSING here; the hub was not asked (HF_HUB_OFFLINE)"
        if self._unreachable:
            return self._unreachable
        try:
            info = HfApi().repo_info(name, revision=revision, repo_type=kind, timeout=_SECONDS)
            told = getattr(getattr(info, "safetensors", None), "total", None)
            if told:
                self.parameters[name] = int(told)
            if not getattr(info, "gated", False):
                return "on the hub, will be downloaded"
            HfApi().auth_check(name, repo_type=kind)
            return "on the hub, gated, and you may read it"
        except GatedRepoError:
            return "GATED on the hub: needs a login that may read it (hf auth login)"
        except RevisionNotFoundError:
            return f"MISSING: the hub has no revision {revision} of it"
        except RepositoryNotFoundError:
            return "MISSING: not on the hub, or private"
        except Exception as error:  # of whatever HTTP library the hub's client uses
            log.debug("%s: %s", name, error)
            self._unreachable = "not here; what the hub has cannot be known, it is not reachable"
            return self._unreachable


def _prepared(name: str) -> Path:
    """Where `datasets` keeps a set that it has prepared."""
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    cache = Path(os.environ.get("HF_DATASETS_CACHE") or home / "datasets")
    return cache.expanduser() / name.replace("/", "___")

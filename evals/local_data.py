"""Local copies of hub data sets, so that machines without a network run the real sets.

Layout below a data root: `<last part of the hub id>/<split>.jsonl`, or `<owner>/<name>/<split>.jsonl`; also
`.jsonl.gz`, `.json` and `.parquet`.
"""

from pathlib import Path

# Endings and the reader of `datasets` for each.
READERS = {".jsonl": "json", ".jsonl.gz": "json", ".json": "json", ".parquet": "parquet"}


def local_copy(hub_id: str, data_root: str | None) -> dict[str, Path]:
    """The files of a hub set below `data_root`, by split; empty when there is no copy."""
    if data_root is None:
        return {}
    for folder in (Path(data_root) / hub_id, Path(data_root) / hub_id.split("/")[-1]):
        files = {}
        for path in sorted(folder.glob("*")) if folder.is_dir() else []:
            for ending in READERS:
                if path.name.endswith(ending) and path.is_file():
                    files[path.name.removesuffix(ending)] = path
                    break
        if files:
            return files
    return {}


def reader(path: Path) -> str:
    """The name under which `datasets.load_dataset` reads a file.

    Raises:
        ValueError: its ending is none of those known.
    """
    for ending, name in READERS.items():
        if path.name.endswith(ending):
            return name
    raise ValueError(f"dataset.path={path}: must end in one of {', '.join(READERS)}")

"""Local copies of hub data sets, so that machines without a network run the real sets.

Layout below a data root: `<last part of the hub id>/<split>.jsonl`, or `<owner>/<name>/<split>.jsonl`; also
`.jsonl.gz`, `.json` and `.parquet`. Of a folder inside a set: `<folder>/<split>.jsonl` or `<folder>-<split>.jsonl` in
the same place.
"""

from pathlib import Path

# Endings and the reader of `datasets` for each.
READERS = {".jsonl": "json", ".jsonl.gz": "json", ".json": "json", ".parquet": "parquet"}


def local_copy(hub_id: str, data_root: str | None, data_dir: str | None = None) -> dict[str, Path]:
    """The files of a hub set below `data_root`, by split; empty when there is no copy.

    data_dir: only those of this folder inside the set.
    """
    if data_root is None:
        return {}
    for folder in (Path(data_root) / hub_id, Path(data_root) / hub_id.split("/")[-1]):
        files = _files(folder)
        if data_dir is not None:
            begins = f"{data_dir}-"
            named = {name.removeprefix(begins): path for name, path in files.items() if name.startswith(begins)}
            files = named | _files(folder / data_dir)
        if files:
            return files
    return {}


def _files(folder: Path) -> dict[str, Path]:
    """The files of a folder that can be read, by name without ending."""
    files = {}
    for path in sorted(folder.glob("*")) if folder.is_dir() else []:
        for ending in READERS:
            if path.name.endswith(ending) and path.is_file():
                files[path.name.removesuffix(ending)] = path
                break
    return files


def reader(path: Path) -> str:
    """The name under which `datasets.load_dataset` reads a file.

    Raises:
        ValueError: its ending is none of those known.
    """
    for ending, name in READERS.items():
        if path.name.endswith(ending):
            return name
    raise ValueError(f"dataset.path={path}: must end in one of {', '.join(READERS)}")

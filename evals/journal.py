"""What an interrupted evaluation has already computed: one line of JSON per finished batch.

The first line says of which evaluation. A process can be killed at any moment: a line counts once its newline is
there, and what a kill left behind the last one is cut off.

Numbers come back bit for bit, NaN and infinities included: JSON writes the shortest decimal that reads back as the
same 64-bit float.
"""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

logger = logging.getLogger(__name__)

# The operating system keeps what a killed process wrote; `fsync` is for machines that go down.
_SECONDS_BETWEEN_SYNCS = 1.0


class Stopped(Exception):
    """Evaluation stopped between two batches because it was asked to; its journal has all that is finished."""


class Journal:
    """A file of finished batches, for one process to write.

    Args:
        path: the file; its folder must exist. The journal of another evaluation is replaced.
        fingerprint: which evaluation, settings and weights included.
    """

    def __init__(self, path: Path, fingerprint: str) -> None:
        self._header = {"journal": 1, "fingerprint": fingerprint}
        self._answers: dict[str, list[Any]] = {}
        length = self._read(path)
        self._file: BinaryIO = path.open("r+b" if length else "wb")
        self._file.truncate(length)
        self._file.seek(length)
        self._synced = time.monotonic()
        if not length:
            self._write(self._header)

    def _read(self, path: Path) -> int:
        """Takes in the file's batches. Returns how many of its bytes are good."""
        if not path.exists():
            return 0
        length = 0
        with path.open("rb") as file:
            for line in file:
                entry = _parsed(line)
                if length == 0 and entry != self._header:
                    logger.warning("%s is not of this evaluation and is replaced", path)
                    return 0
                if length > 0:
                    if entry is None or not isinstance(entry.get("answers"), list) or "key" not in entry:
                        break
                    self._answers[entry["key"]] = entry["answers"]
                length += len(line)
        if cut := path.stat().st_size - length:
            logger.info("%s: cut off %d bytes of a batch that was not finished", path, cut)
        return length

    def get(self, key: str) -> list[Any] | None:
        """The answers of a finished batch."""
        return self._answers.get(key)

    def add(self, key: str, answers: list[Any]) -> None:
        """Keeps the answers of a batch."""
        self._write({"key": key, "answers": answers})

    def _write(self, entry: dict[str, Any]) -> None:
        self._file.write(json.dumps(entry).encode() + b"\n")
        self._file.flush()
        if time.monotonic() - self._synced > _SECONDS_BETWEEN_SYNCS:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.fsync(self._file.fileno())
        self._file.close()


def _parsed(line: bytes) -> dict[str, Any] | None:
    """None for a line that is not whole."""
    if not line.endswith(b"\n"):
        return None
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None

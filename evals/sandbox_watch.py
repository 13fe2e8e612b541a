"""What the processes of a sandbox use together, seen from outside: limits of the kernel are for each process alone.

Linux only; what ended in the meantime counts nothing.
"""

import contextlib
import os
from collections.abc import Iterator

_PAGE = os.sysconf("SC_PAGE_SIZE")


def descendants(process: int) -> Iterator[int]:
    """Process ids of a process and of all below it."""
    yield process
    for child in children(process):
        yield from descendants(child)


def children(process: int) -> list[int]:
    """Process ids of the children of all threads of a process."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{process}/task"):
            found += map(int, _read(f"/proc/{process}/task/{task}/children").split())
    return found


def _read(path: str) -> str:
    with open(path) as told:
        return told.read()


def memory(process: int, enough: int) -> int:
    """Bytes of memory that a process and all below it hold; exact only above `enough`.

    Pages that several of them share are counted once (as the kernel's proportional set size), which is slower to find
    out and is done only where a plain sum is above `enough`.
    """
    processes = list(descendants(process))
    total = sum(_resident(found) for found in processes)
    return total if total <= enough else sum(_proportional(found) for found in processes)


def _resident(process: int) -> int:
    try:
        return int(_read(f"/proc/{process}/statm").split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0


def _proportional(process: int) -> int:
    try:
        lines = _read(f"/proc/{process}/smaps_rollup").splitlines()
    except OSError:
        return _resident(process)
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))

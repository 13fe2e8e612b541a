"""TRL's trainers make this process look as if a launcher had started it; the tests after them must not see that."""

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def environment_as_it_was() -> Iterator[None]:
    """Put the environment variables back: Accelerate sets RANK, WORLD_SIZE and others."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)

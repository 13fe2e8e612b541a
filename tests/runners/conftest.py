"""For tests that compose: Hydra set up as the command sets it up, in a folder of the test's own."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra

from tests.command import forget_sources, write_plugin


@pytest.fixture
def clean_path() -> Iterator[None]:
    """Take the folders of plugins off sys.path, and what was read of them out of the caches."""
    before = list(sys.path)
    yield
    sys.path[:] = before
    forget_sources()


@pytest.fixture
def composer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clean_path: None) -> Iterator[Path]:
    """Hydra set up; the working directory, which is the test's own."""
    monkeypatch.chdir(tmp_path)
    GlobalHydra.instance().clear()
    with initialize_config_module(config_module="conf", version_base="1.3"):
        yield tmp_path


@pytest.fixture
def plugin(tmp_path: Path, clean_path: None) -> Path:
    """A folder for `plugins=` with the method `private/mine` and the experiment `tried/table`."""
    return write_plugin(tmp_path / "plugin")

"""Each test of an experiment has a folder of its own, no real data, and shares runs with those of its module."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RETABLE_DATA", raising=False)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder of runs for all tests here, so that what they start from is trained once."""
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture
def composer() -> Iterator[None]:
    GlobalHydra.instance().clear()
    with initialize_config_module(config_module="conf", version_base="1.3"):
        yield

"""What is read of a target without importing it."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from runners.errors import UserError
from runners.signatures import config_class, imported_modules, module_path, read

SOURCE = '''"""A module.

Of several lines.
"""

import torch
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import PositiveFloat

from .shared import SharedConfig
from .shared import Base as Renamed

FIRST: float = 0.1
RATES = (FIRST, 2 * FIRST)


@dataclass(frozen=True, kw_only=True)
class OwnConfig(SharedConfig):
    rate: PositiveFloat = RATES[1]
    mode: Literal["a", "b"] = "a"


class Own(Renamed):
    """Own: the first line.

    The second.
    """

    config: OwnConfig
    kinds = ("causal", "image")
    couples: ClassVar[str | None] = "micro-batch"
    made = torch.zeros(1)


class Bare(Own):
    pass


class Plain:
    def __init__(self, params, lr: float, *, betas: tuple[float, "Tensor | float"] = (1, 2), fused: bool | None = None,
                 shape: torch.Size = None, mode="x"):
        pass


class Child(Plain):
    pass


class Anything:
    def __init__(self, **options):
        pass
'''

SHARED = '''"""Shared."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SharedConfig:
    depth: int = 3


class Base:
    """The base."""

    trained = ("policy",)
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clean_path: None) -> str:
    """A package that must not be imported: its name."""
    folder = tmp_path / "signed"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (folder / "own.py").write_text(SOURCE)
    (folder / "shared.py").write_text(SHARED)
    (folder / "again.py").write_text("from .own import Own as Again\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return "signed"


def test_dataclass_docstring_and_attributes_are_read(package: str) -> None:
    target = read(f"{package}.own.Own")
    assert target.doc == "Own: the first line."
    assert target.config is not None
    assert [(field.name, field.default) for field in dataclasses.fields(target.config)] == [
        ("depth", 3),
        ("rate", 0.2),
        ("mode", "a"),
    ]
    # Literals only, and the bases' too.
    assert target.attributes == {"trained": ("policy",), "kinds": ("causal", "image"), "couples": "micro-batch"}
    assert package not in sys.modules


def test_types_of_the_dataclass_are_its_own(package: str) -> None:
    config = read(f"{package}.own.Own").config
    assert config is not None
    adapter = TypeAdapter(config)
    assert adapter.validate_json('{"rate": 1, "mode": "b"}').rate == 1.0
    for wrong in ('{"rate": -1}', '{"mode": "c"}', '{"depth": "deep"}'):
        with pytest.raises(ValidationError):
            adapter.validate_json(wrong)


def test_what_a_class_does_not_say_its_base_does(package: str) -> None:
    bare, own = read(f"{package}.own.Bare"), read(f"{package}.own.Own")
    assert bare.config is own.config and bare.attributes == own.attributes
    assert bare.doc == "A module."


def test_names_are_followed_to_where_they_are_defined(package: str) -> None:
    assert read(f"{package}.again.Again").config is read(f"{package}.own.Own").config


def test_parameters_of_init_have_the_types_that_are_built_in(package: str) -> None:
    for name in ("Plain", "Child"):
        parameters = read(f"{package}.own.{name}").parameters
        assert parameters == {
            "params": Any,
            "lr": float,
            "betas": tuple[float, Any],
            "fused": bool | None,
            "shape": Any,
            "mode": Any,
        } or parameters == {**parameters, "betas": tuple[float, "Tensor | float"]}  # noqa: F821
    assert read(f"{package}.own.Anything").parameters is None


def test_adamw_is_read_without_torch() -> None:
    target = read("torch.optim.AdamW")
    assert target.parameters is not None
    assert {"lr", "betas", "eps", "weight_decay"} <= set(target.parameters)
    assert target.parameters["weight_decay"] is float
    code = (
        "import sys; from runners.signatures import read; read('torch.optim.AdamW'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_config_class_of_a_running_class() -> None:
    from methods.finetune.flow import Flow, FlowConfig

    class Further(Flow):
        """A subclass that says nothing of its config."""

    assert config_class(Flow) is config_class(Further) is FlowConfig
    with pytest.raises(UserError, match="must annotate `config`"):
        config_class(int)


def test_imports_are_found_wherever_they_stand(package: str, tmp_path: Path) -> None:
    (tmp_path / package / "late.py").write_text(
        "def later():\n    import methods.method\n    from methods import batch\n    from . import shared\n"
    )
    found = imported_modules(f"{package}.late")
    assert {"methods.method", "methods", "methods.batch", package, f"{package}.shared"} <= set(found)


def test_module_path_finds_modules_packages_and_nothing(package: str, tmp_path: Path) -> None:
    assert module_path(f"{package}.own") == tmp_path / package / "own.py"
    assert module_path(package) == tmp_path / package / "__init__.py"
    assert module_path(f"{package}.nothing") is None
    assert module_path("nothing_of_this_name") is None


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "methods.finetune.flow.Flwo",
            r"_target_=methods.finetune.flow.Flwo: the module has no such class \(nearest: Flow",
        ),
        ("methods.finetune.flwo.Flow", "_target_=methods.finetune.flwo: no such module"),
        ("Flow", "_target_=Flow: must be a dotted path to a class"),
    ],
)
def test_unknown_targets_are_named(path: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(path)

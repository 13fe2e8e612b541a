"""The smallest run that composes: with overrides, with one value changed, or refused."""

from functools import cache
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from runners.compose import RunSpec, check, run_spec
from runners.errors import UserError
from tests.command import TINY


def spec(*overrides: str, base: tuple[str, ...] = TINY) -> RunSpec:
    return run_spec([*base, *overrides])


def changed(override: str) -> RunSpec:
    """The run of TINY with one value changed: as composing it all again, which takes a quarter of a second."""
    parsed = OverridesParser.create().parse_override(override)
    config = OmegaConf.create(tiny_config())
    OmegaConf.update(config, parsed.key_or_group, parsed.value(), force_add=True)
    chosen = {"method": "", "model": ""}
    return RunSpec(check(config, chosen), [], chosen)


@cache
def tiny_config() -> dict[Any, Any]:
    GlobalHydra.instance().clear()
    with initialize_config_module(config_module="conf", version_base="1.3"):
        config = OmegaConf.to_container(compose("config", overrides=list(TINY)))
    assert isinstance(config, dict)
    return config


def refusal(*overrides: str, base: tuple[str, ...] = TINY) -> str:
    with pytest.raises(UserError) as error:
        spec(*overrides, base=base)
    assert "\n" not in str(error.value)
    return str(error.value)

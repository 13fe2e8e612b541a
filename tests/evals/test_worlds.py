"""Every generated skill has one module, which can make its rows."""

import pytest

from evals import mini_world, number_game, preference_world, problem_world, toy_programs
from evals.worlds import WORLDS

MODULES = (number_game, preference_world, problem_world, toy_programs)


def test_no_skill_has_two_modules_or_the_name_of_another() -> None:
    assert len(WORLDS) == sum(len(module.SKILLS) for module in MODULES)
    assert set(WORLDS).isdisjoint({*mini_world.SKILLS, "pretraining"})


@pytest.mark.parametrize("skill", WORLDS)
def test_rows_and_options_of_every_skill(skill: str) -> None:
    assert skill in WORLDS[skill].SKILLS
    WORLDS[skill].check_options(skill, {})
    (row,) = WORLDS[skill].rows(skill, "test", 1, 0)
    assert row["prompt"]
    with pytest.raises(ValueError, match=f"^zzz=1: {skill} has no such option; it has "):
        WORLDS[skill].check_options(skill, {"zzz": 1})

"""Which module makes the rows of a generated skill, for `dataset.source=mini_world`."""

from collections.abc import Mapping
from types import ModuleType

from evals import number_game, preference_world, problem_world, toy_programs

# Each of these modules has SKILLS, check_options(skill, options) and rows(skill, split, size, seed, **options).
WORLDS: Mapping[str, ModuleType] = {
    skill: module for module in (number_game, preference_world, problem_world, toy_programs) for skill in module.SKILLS
}

"""What a job reads from a command's overrides: values that hold a list."""

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from runners.compose import explain
from runners.errors import UserError


def listed(overrides: list[str], key: str) -> list[str]:
    """The list that `key=[a,b]` gives; a single value is a list of one, no such override an empty one.

    Raises:
        UserError: it cannot be parsed.
    """
    found: list[str] = []
    for word in overrides:
        if word.partition("=")[0].lstrip("+") != key:
            continue
        try:
            value = OverridesParser.create().parse_override(word).value()
        except HydraException as error:
            raise UserError(explain(error, [word])) from error
        items = value if isinstance(value, list) else [] if value is None else [value]
        found = [str(getattr(item, "text", item)) for item in items]
    return found

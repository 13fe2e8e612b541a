"""Two configurations side by side: dotted keys, and which of them differ."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ABSENT = "(absent)"
_LONGEST = 60  # characters of a value in a message


@dataclass(frozen=True)
class Change:
    """A key whose values differ, as they are shown."""

    key: str
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.key} {self.old} -> {self.new}"


def dotted(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested data as one level: `model.architecture.hidden_size`; mappings in a list get the item's number."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= dotted(value, f"{name}.")
        elif isinstance(value, list | tuple) and value and all(isinstance(item, Mapping) for item in value):
            for number, item in enumerate(value):
                flat |= dotted(item, f"{name}.{number}.")
        else:
            flat[name] = list(value) if isinstance(value, tuple) else value
    return flat


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """The keys that differ between two nested mappings, in the order of `new`, then those that only `old` has."""
    before, after = dotted(old), dotted(new)
    found = []
    for key in dict.fromkeys([*after, *before]):
        old_text, new_text = (shown(side[key]) if key in side else ABSENT for side in (before, after))
        # 1 and true are equal to Python, not to the schema.
        if old_text != new_text or before.get(key) != after.get(key):
            found.append(Change(key, old_text, new_text))
    return found


def shown(value: Any) -> str:
    """A value as YAML would have it, cut where it is long."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = " ".join(str(value).split()) or "''"
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."

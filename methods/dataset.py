"""Data sets that are no text: made or read by a class of their own, which `dataset._target_` names."""

from typing import Any, ClassVar


class Dataset:
    """Base of data sets that are no text.

    `config` is the frozen dataclass of its settings, against which the YAML of `conf/dataset/` is checked. Settings
    named as those of text are treated as those: `source` (hub or file), `path`, `name`, `revision`, `data_dir`, `split`
    and `data_root` say what is read, and what was read is part of the run's identity.
    """

    type: ClassVar[str] = ""  # what a method's `data` names

    def __init__(self, config: Any) -> None:
        self.config = config

    def load(self, seed: int) -> Any:
        """The data; what is random in them is a function of `seed`, the run's, alone.

        Raises:
            ValueError: the settings do not go together; names key, value and rule.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement load")

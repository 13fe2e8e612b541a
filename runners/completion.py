"""Tab completion of nested choices (`method=finetune/sft`), which Hydra's own leaves out."""

from hydra.plugins.completion_plugin import CompletionPlugin

from runners.expand import choices, config_roots, groups


def install() -> None:
    """Make Hydra's completion, for any shell, know every choice of our groups, and those of `plugins=PATH`."""
    hydras_own = CompletionPlugin._query_config_groups

    def query(self: CompletionPlugin, word: str, config_name: str | None, words: list[str]) -> tuple[list[str], bool]:
        roots = config_roots(words)
        group, equals, begun = word.partition("=")
        if equals and group in groups(roots):
            return [f"{group}={name}" for name in choices(group, roots) if name.startswith(begun)], True
        found, exact = hydras_own(self, word, config_name, words)
        # Hydra ends a group that has folders with "/", or with nothing.
        return [f"{name.rstrip('=/')}=" if name.rstrip("=/") in groups(roots) else name for name in found], exact

    CompletionPlugin._query_config_groups = query  # type: ignore[method-assign]

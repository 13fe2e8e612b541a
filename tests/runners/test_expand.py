"""Rows of an experiment as overrides."""

from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from runners.errors import UserError, nearest
from runners.expand import (
    check_choices,
    choices,
    config_roots,
    expand,
    load_experiment,
    parts_of,
    plugin_overrides,
    preset,
    scale_of,
    seeds_of,
    value_of,
    without,
)
from tests.command import EXPERIMENT


@pytest.fixture
def words(plugin: Path) -> list[str]:
    """What names the made-up experiment."""
    return [f"plugins={plugin}", "experiment=tried/table"]


def test_value_of_is_the_last_one_given() -> None:
    assert value_of(["seed=1", "seed=2"], "seed") == "2"
    assert value_of(["+seed=1"], "seed") == "1"
    assert value_of(["row='a b'"], "row") == "a b"
    assert value_of(["row=null"], "row") is None
    assert value_of(["seeds=1"], "seed") is None
    assert value_of([], "seed", "7") == "7"


def test_value_may_hold_an_equals_sign() -> None:
    assert value_of(["dataset.prompt='a=b'"], "dataset.prompt") == "a=b"


def test_without_drops_a_key_however_it_is_set() -> None:
    assert without(["job=run", "+job=x", "~job", "++job=y", "jobs=1"], "job") == ["jobs=1"]


def test_no_experiment_changes_nothing() -> None:
    assert expand(["method=finetune/flow", "seed=3"]) == ["method=finetune/flow", "seed=3"]


def test_first_row_comes_before_what_the_user_typed(words: list[str]) -> None:
    expanded = expand([*words, "training.steps=5", "seed=9"])
    assert expanded[0] == "scale=mini"
    assert expanded.index("training.steps=1") < expanded.index("training.steps=5")
    assert "method=untrained" in expanded and expanded[-1] == "row=plain"
    # Of two values the last wins: the user's.
    assert value_of(expanded, "training.steps") == "5" and value_of(expanded, "seed") == "9"


def test_row_brings_its_own_overrides_and_those_of_the_scale(words: list[str]) -> None:
    mini = expand([*words, "row=sft"])
    assert [word for word in mini if word in ("model=mini_random", "method=finetune/sft", "optimizer.lr=2e-3")] == [
        "model=mini_random",
        "method=finetune/sft",
        "optimizer.lr=2e-3",
    ]
    assert value_of(mini, "seed") == "1"
    full = expand([*words, "row=sft", "scale=full"])
    assert "model=qwen3_0_6b" in full and "optimizer.lr=2e-3" not in full
    assert value_of(full, "scale") == "full"


def test_expanding_twice_composes_the_same(words: list[str]) -> None:
    once = expand([*words, "row=sft", "seed=2", "training.steps=5"])
    twice = expand(once)
    for key in {word.partition("=")[0] for word in once}:
        assert value_of(twice, key) == value_of(once, key)


# Presets -----------------------------------------------------------------------------------------------------


@pytest.fixture
def own_preset(plugin: Path) -> Path:
    """The preset `debug=short` in a plugin's folder."""
    path = plugin / "conf" / "debug" / "short.yaml"
    path.parent.mkdir()
    path.write_text("# Three steps.\noverrides: [training.steps=3, evaluation=none, seed=8]\n")
    return path


def test_preset_comes_after_the_row_and_before_what_the_user_typed(words: list[str], own_preset: Path) -> None:
    typed = [*words, "row=sft", "debug=short", "evaluation=gsm8k"]
    expanded = expand(typed)
    assert expanded.index("training.steps=1") < expanded.index("training.steps=3")  # the scale's, the preset's
    assert expanded.index("evaluation=none", expanded.index("training.steps=3")) < expanded.index("evaluation=gsm8k")
    assert [value_of(expanded, key) for key in ("training.steps", "seed", "evaluation", "debug")] == [
        *("3", "8", "gsm8k", "short")
    ]


def test_limits_of_a_preset_count_where_the_choice_has_such_a_key(words: list[str], own_preset: Path) -> None:
    limits = ["mix.samples=5", "mix.max_new_tokens=6", "penalty.samples=7", "method.scale=8"]
    own_preset.write_text(f"overrides: [training.steps=3]\nlimits: [{', '.join(limits)}]\n")

    def limited(*chosen: str) -> list[str]:
        return preset([words[0], "debug=short", *chosen])[1:]

    assert limited() == limited("mix=none", "penalty=l2_sp") == limited("mix=of_nobody") == []
    assert limited("mix=context_free") == ["mix.samples=5"]
    assert limited("mix=contextual_synthetic") == ["mix.samples=5", "mix.max_new_tokens=6"]
    assert limited("penalty=ewc", "method=private/mine") == ["penalty.samples=7", "method.scale=8"]
    # What a row chooses counts too, and what the user types wins.
    table = own_preset.parents[1] / "experiment" / "tried" / "table.yaml"
    table.write_text(EXPERIMENT.replace("[method=finetune/flow]", "[method=finetune/flow, mix=context_free]"))
    typed = [*words, "row=flow", "debug=short"]
    assert value_of(expand(typed), "mix.samples") == "5"
    assert value_of(expand([*typed, "mix.samples=9"]), "mix.samples") == "9"
    assert value_of(expand([*words, "row=sft", "debug=short"]), "mix.samples") is None


def test_a_merging_row_takes_no_model_of_a_preset(words: list[str], own_preset: Path) -> None:
    own_preset.write_text("overrides: [training.steps=3, model.id=null, model.tokenizer=bytes]\n")
    table = own_preset.parents[1] / "experiment" / "tried" / "table.yaml"
    table.write_text(EXPERIMENT.replace("[method=finetune/flow]", "[method=merging/wise_ft]"))
    found = {row: expand([*words, f"row={row}", "debug=short"]) for row in ("sft", "flow")}
    assert value_of(found["flow"], "model.tokenizer") is None and value_of(found["sft"], "model.tokenizer") == "bytes"
    assert value_of(found["flow"], "training.steps") == value_of(found["sft"], "training.steps") == "3"


def test_preset_needs_no_experiment(words: list[str], own_preset: Path) -> None:
    typed = [words[0], "training.steps=9", "debug=short"]
    assert expand(typed) == ["training.steps=3", "evaluation=none", "seed=8", *typed]
    assert preset(typed) == ["training.steps=3", "evaluation=none", "seed=8"] and preset(words) == []


@pytest.mark.parametrize("name", choices("debug", config_roots([])))
@pytest.mark.parametrize("chosen", [[], ["experiment=flow/language", "row=flow"]])
def test_expanding_a_preset_twice_composes_the_same(name: str, chosen: list[str]) -> None:
    once = expand([*chosen, f"debug={name}", "training.steps=5"])
    twice = expand(once)
    for key in {word.partition("=")[0] for word in once}:
        assert value_of(twice, key) == value_of(once, key)
    assert value_of(twice, "training.steps") == "5"


def test_unknown_preset_comes_with_the_nearest(words: list[str], own_preset: Path) -> None:
    for typed in ([words[0]], words):
        with pytest.raises(UserError, match=r"^debug=shotr: no such choice \(nearest: short\)"):
            expand([*typed, "debug=shotr"])


@pytest.mark.parametrize("text", ["overrides: training.steps=3", "steps: 3", "overrides: [{training.steps: 3}]", "[]"])
def test_preset_without_a_list_of_overrides_is_refused(words: list[str], own_preset: Path, text: str) -> None:
    own_preset.write_text(text)
    with pytest.raises(UserError, match=r"short\.yaml: a preset needs `overrides`, a list of key=value"):
        expand([*words, "debug=short"])


@pytest.mark.parametrize("limits", ["mix.samples=3", "{mix.samples: 3}", "[{mix.samples: 3}]", "null"])
def test_limits_that_are_no_list_of_overrides_are_refused(words: list[str], own_preset: Path, limits: str) -> None:
    own_preset.write_text(f"overrides: [training.steps=3]\nlimits: {limits}\n")
    with pytest.raises(UserError, match=r"short\.yaml: a preset needs `limits`, a list of key=value"):
        expand([*words, "debug=short"])


# Sweeps and means of rows -------------------------------------------------------------------------------------

SFT = "  sft: {label: SFT, overrides: [method=finetune/sft], mini: [optimizer.lr=2e-3]}\n"


def with_rows(plugin: Path, text: str) -> Path:
    """The made-up experiment as tried/search, with these rows in the place of `sft`; its configuration root."""
    assert SFT in EXPERIMENT
    changed = EXPERIMENT.replace("tried/table", "tried/search").replace(SFT, text)
    (plugin / "conf" / "experiment" / "tried" / "search.yaml").write_text(changed)
    return plugin / "conf"


def rows_of(plugin: Path, text: str) -> dict[str, Any]:
    return dict(load_experiment("tried/search", [with_rows(plugin, text)])["rows"])


def test_a_sweep_is_read_as_one_row_per_value(plugin: Path) -> None:
    rows = rows_of(
        plugin, "  sft: {label: SFT, overrides: [method=finetune/sft], sweep: {optimizer.lr: [1e-4, 3e-4]}}\n"
    )
    assert list(rows) == ["plain", "sft-lr-1e-4", "sft-lr-3e-4", "flow"]  # in the row's place
    assert rows["sft-lr-1e-4"] == {
        "label": "SFT, lr 1e-4",
        "overrides": ["method=finetune/sft", "optimizer.lr=1e-4"],
        "group": "sft",
        "group_label": "SFT",
    }
    assert rows["flow"] == {"label": "FLOW", "overrides": ["method=finetune/flow"]}


def test_several_keys_make_the_product(plugin: Path) -> None:
    rows = rows_of(plugin, "  sft: {sweep: {optimizer.lr: [1e-4, 3e-4], training.steps: [5, 9]}, seeds: [4]}\n")
    assert list(rows)[1:5] == [f"sft-lr-{rate}-steps-{steps}" for rate in ("1e-4", "3e-4") for steps in (5, 9)]
    assert rows["sft-lr-3e-4-steps-5"]["label"] == "sft, lr 3e-4, steps 5"
    assert rows["sft-lr-3e-4-steps-5"]["overrides"] == ["optimizer.lr=3e-4", "training.steps=5"]
    assert rows["sft-lr-3e-4-steps-5"]["seeds"] == [4]


@pytest.mark.parametrize(
    ("sweep", "keys", "overrides"),
    [
        # As they are written: the loader reads 1e-4 as 0.0001 and 1.0e+4 as 10000.0.
        (
            "optimizer.lr: [1e-4, 0.0003, '5e-4']",
            ["lr-1e-4", "lr-0.0003", "lr-5e-4"],
            ["optimizer.lr=1e-4", None, None],
        ),
        ("a.b: [1.0e+4, -2]", ["b-1.0e4", "b--2"], ["a.b=1.0e+4", "a.b=-2"]),
        ("a.b: [yes, null, x]", ["b-true", "b-null", "b-x"], ["a.b=true", "a.b=null", "a.b=x"]),
        (
            "method: [finetune/sft, private/mine]",
            ["method-finetune-sft", "method-private-mine"],
            ["method=finetune/sft", None],
        ),
        ("+a.b: ['[1,2]']", ["b-1-2"], ["+a.b=[1,2]"]),
        ("method.x: [1], penalty.x: [2]", ["method.x-1-penalty.x-2"], ["method.x=1"]),
    ],
)
def test_keys_of_a_sweep_are_readable_and_overrides_as_typed(
    plugin: Path, sweep: str, keys: list[str], overrides: list[str | None]
) -> None:
    rows = rows_of(plugin, f"  sft: {{sweep: {{{sweep}}}}}\n")
    found = [key for key in rows if key.startswith("sft-")]
    assert found == [f"sft-{key}" for key in keys]
    for key, override in zip(found, overrides, strict=True):
        assert override is None or rows[key]["overrides"][0] == override
    for key in found:  # as a value on the command line, unquoted
        (parsed,) = OverridesParser.create().parse_overrides([f"row={key}"])
        assert parsed.value() == key


def test_a_sweep_may_come_from_an_anchor(plugin: Path) -> None:
    text = (
        "  sft: &own {label: SFT, sweep: {optimizer.lr: &rates [1e-4, 3e-4]}}\n"
        "  other: {label: Other, sweep: {optimizer.lr: *rates}}\n"
        "  third: {<<: *own, label: Third}\n"
    )
    rates = [(row, rate) for row in ("sft", "other", "third") for rate in ("1e-4", "3e-4")]
    assert list(rows_of(plugin, text))[1:7] == [f"{row}-lr-{rate}" for row, rate in rates]


def test_a_row_that_names_its_group_keeps_it(plugin: Path) -> None:
    rows = rows_of(plugin, "  sft: {group: tuned, sweep: {optimizer.lr: [1e-4]}}\n")
    assert rows["sft-lr-1e-4"]["group"] == "tuned" and "group_label" not in rows["sft-lr-1e-4"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "  sft: {sweep: {optimizer.lr: []}}",
            "rows.sft.sweep.optimizer.lr must be a list of at least one value, got []",
        ),
        (
            "  sft: {sweep: {optimizer.lr: 1}}",
            "rows.sft.sweep.optimizer.lr must be a list of at least one value, got 1",
        ),
        ("  sft: {sweep: [1]}", "rows.sft.sweep must map keys to lists of values, got [1]"),
        ("  sft: {sweep: {5: [1]}}", "rows.sft.sweep must map keys to lists of values, got {5: [1]}"),
        ("  sft: {sweep: }", "rows.sft.sweep must map keys to lists of values, got None"),
        ("  sft: {sweep: {a.b: [[1]]}}", "rows.sft.sweep.a.b must hold plain values, got [[1]]"),
        (
            "  sft: {sweep: {mini: {a.b: [1]}}}",
            "rows.sft.sweep.mini must be a list of at least one value, got {'a.b': [1]}",
        ),
        ("  sft: {sweep: {a.b: [1e-4, 0.0001]}}", "rows.sft.sweep.a.b must hold each value once, got [0.0001, 0.0001]"),
        ("  sft: {sweep: {a.b: [x/y, x-y]}}", "rows.sft.sweep must give rows of different keys, got sft-b-x-y twice"),
        (
            "  sft: {sweep: {a.b: [1]}}\n  sft-b-1: {label: Other}",
            "rows must have different keys after their sweeps, got sft-b-1 twice",
        ),
        (
            "  sft: {mini: [optimizer.lr=1], sweep: {optimizer.lr: [1, 2]}}",
            "rows.sft.sweep.optimizer.lr must not be set by mini of the row too, got ['optimizer.lr=1']",
        ),
        (
            "  sft: {mean_of: [plain], sweep: {a.b: [1]}}",
            "rows.sft.sweep must stand in a row with runs of its own, got one with mean_of",
        ),
    ],
)
def test_a_sweep_that_cannot_be_read_is_refused_in_one_line(plugin: Path, text: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        rows_of(plugin, text + "\n")
    assert str(error.value).endswith(f"tried/search.yaml: {message}")


def test_a_row_of_a_sweep_is_chosen_by_its_key(plugin: Path) -> None:
    with_rows(plugin, "  sft: {overrides: [method=finetune/sft], sweep: {optimizer.lr: [1e-4, 3e-4]}}\n")
    words = [f"plugins={plugin}", "experiment=tried/search"]
    expanded = expand([*words, "row=sft-lr-3e-4"])
    assert value_of(expanded, "optimizer.lr") == "3e-4" and expanded[-1] == "row=sft-lr-3e-4"
    assert value_of(expand([*words, "row=sft-lr-3e-4", "optimizer.lr=1"]), "optimizer.lr") == "1"
    with pytest.raises(
        UserError, match=r"row=sft: experiment tried/search has no such row.* it has plain, sft-lr-1e-4"
    ):
        expand([*words, "row=sft"])


def test_a_mean_of_rows_is_not_run(plugin: Path) -> None:
    root = with_rows(plugin, SFT + "  both: {label: Both, mean_of: [sft, flow]}\n")
    words = [f"plugins={plugin}", "experiment=tried/search"]
    with pytest.raises(UserError) as error:
        expand([*words, "row=both"])
    assert str(error.value) == "row=both: must be a row with runs of its own; this is the mean of sft, flow"
    experiment = load_experiment("tried/search", [root])
    assert seeds_of(experiment, "both", "mini") == [] and parts_of(experiment, "both") == ["sft", "flow"]
    # Without row=, the first row that can be run.
    text = (root / "experiment" / "tried" / "search.yaml").read_text()
    first = text.replace("rows:\n", "rows:\n  all: {mean_of: [sft, flow]}\n")
    (root / "experiment" / "tried" / "search.yaml").write_text(first)
    assert expand(words)[-1] == "row=plain"


# Names -------------------------------------------------------------------------------------------------------


def test_seeds_of_a_row_win_over_those_of_the_scale(plugin: Path) -> None:
    experiment = load_experiment("tried/table", [plugin / "conf"])
    assert seeds_of(experiment, "plain", "full") == [0]
    assert seeds_of(experiment, "flow", "full") == [1, 2, 3]


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["row=flwo"], "row=flwo: experiment tried/table has no such row (nearest: flow); it has plain, sft, flow"),
        (["scale=ful"], "scale=ful: experiment tried/table defines only mini, full"),
        (["experiment=tried/tabel"], "experiment=tried/tabel: no such experiment (nearest: tried/table)"),
        (["experiment=table"], "experiment=table: no such experiment (nearest: tried/table"),
    ],
)
def test_unknown_names_come_with_the_nearest(words: list[str], typed: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        expand([*words, *typed])
    assert str(error.value).startswith(message)


def test_a_row_needs_an_experiment() -> None:
    with pytest.raises(UserError, match="row=flow: only an experiment has rows"):
        expand(["row=flow"])


@pytest.mark.parametrize("missing", ["rows", "scales"])
def test_experiment_without_rows_or_scales_is_refused(plugin: Path, missing: str) -> None:
    path = plugin / "conf" / "experiment" / "tried" / "broken.yaml"
    path.write_text(EXPERIMENT.replace(f"{missing}:\n", f"other_{missing}:\n"))
    with pytest.raises(UserError, match="needs `rows` and `scales`"):
        load_experiment("tried/broken", [plugin / "conf"])


def test_scale_defaults_to_the_miniature(plugin: Path) -> None:
    assert scale_of([], load_experiment("tried/table", [plugin / "conf"])) == "mini"


def test_choices_are_names_of_files_and_hold_no_defaults() -> None:
    names = choices("method", config_roots([]))
    assert {"finetune/sft", "finetune/flow", "untrained"} <= set(names)
    assert names == sorted(names)
    assert not any(name.split("/")[-1].startswith("_") for name in choices("model", config_roots([])))


def test_plugins_are_found_by_hydra_and_by_python(plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    overrides = plugin_overrides([f"plugins={plugin}", "seed=1"])
    assert overrides[0] == f"hydra.searchpath=[file://{plugin}/conf]"
    # Appended: a plugin's folder named methods/ does not hide the installed package.
    assert sys.path[-1] == str(plugin)
    assert "private/mine" in choices("method", config_roots(overrides))
    assert plugin_overrides(overrides) == overrides


def test_several_plugin_folders(plugin: Path, tmp_path: Path) -> None:
    (tmp_path / "second" / "conf").mkdir(parents=True)
    roots = config_roots([f"plugins=[{plugin},{tmp_path / 'second'}]"])
    assert roots[1:] == [plugin / "conf", tmp_path / "second" / "conf"]


def test_plugins_must_exist(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must be an existing folder"):
        plugin_overrides([f"plugins={tmp_path / 'nowhere'}"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method=finetune/flwo", "method=finetune/flwo: no such choice (nearest: finetune/flow"),
        ("method=flow", "method=flow: no such choice (nearest: finetune/flow)"),
        ("+model=minni", "model=minni: no such choice (nearest: mini"),
        ("method=", "method=: no such choice"),
        ("dataset=null", "dataset=null: no such choice"),
    ],
)
def test_unknown_choice_comes_with_the_nearest(override: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        check_choices([override])
    assert str(error.value).startswith(message)


def test_known_choices_keys_and_sweeps_pass() -> None:
    check_choices(["method=finetune/flow", "model='mini'", "model.id=x", "method=a,b", "hydra/launcher=joblib", "~x"])


def test_nearest_takes_the_last_part_of_a_name() -> None:
    assert nearest("flow", ["finetune/flow", "finetune/sft"]) == " (nearest: finetune/flow)"
    assert nearest("zzz", ["finetune/flow"]) == ""

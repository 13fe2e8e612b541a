"""The rules for a composed configuration: what is refused, in one line that names key, value and rule."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from runners.compose import check, run_spec
from runners.errors import UserError
from tests.command import METHOD, UNTRAINED, write_plugin
from tests.runners.tiny_run import changed, refusal, spec, tiny_config

PAIRS = "{source:mini_world,size:8,skill:preference_pairs,type:pair"  # to be closed


@pytest.mark.parametrize(
    ("override", "message"),
    [
        # A key that is not there.
        ("+model.revison=x", "model.revison=x: unknown key (nearest: revision"),
        ("+dataset.prompts=x", "dataset.prompts=x: unknown key (nearest: prompt"),
        ("+evaluation.task=x", "evaluation.task=x: unknown key (nearest: tasks"),
        ("+engine.zero=1", "engine.zero=1: unknown key"),
        ("+tracker.projct=x", "tracker.projct=x: unknown key (nearest: project"),
        ("evaluation.tasks=[{name:gsm8k,num_fewshto:3}]", "evaluation.tasks.0.num_fewshto=3: "),
        # A wrong type.
        ("training.steps=abc", "training.steps=abc: should be a valid integer"),
        ("training.steps=1.5", "training.steps=1.5: should be a valid integer"),
        ("training.packing=1", "training.packing=1: should be a valid boolean"),
        ("seed=one", "seed=one: should be a valid integer"),
        ("seed=1.5", "seed=1.5: should be a valid integer"),
        ("optimizer.lr=abc", "optimizer.lr=abc: must be a number greater than 0"),
        ("optimizer.lr=true", "optimizer.lr=True: must be a number greater than 0"),
        ("optimizer.betas=3", "optimizer.betas=3: should be a valid array"),
        ("optimizer.betas=[0.9,0.99,0.999]", "optimizer.betas=[0.9, 0.99, 0.999]: Tuple should have at most 2 items"),
        ("optimizer.weight_decay=abc", "optimizer.weight_decay=abc: should be a valid number"),
        ("evaluation.tasks=gsm8k", "evaluation.tasks=gsm8k: should be a valid array"),
        ("evaluation.tasks=[3]", "evaluation.tasks.0=3: should be an object"),
        ("evaluation.include_path=/", "evaluation.include_path=/: should be a valid array"),
        ("model.architecture=big", "model.architecture=big: should be an object"),
        # A value out of range.
        ("optimizer.lr=-1", "optimizer.lr=-1: must be a number greater than 0"),
        ("optimizer.lr=0", "optimizer.lr=0: must be a number greater than 0"),
        ("optimizer.lr=nan", "optimizer.lr=nan: must be a number greater than 0"),
        ("optimizer.lr=inf", "optimizer.lr=inf: must be a number greater than 0"),
        ("optimizer.lr=null", "optimizer.lr=None: must be a number greater than 0"),
        ("seed=-1", "seed=-1: should be greater than or equal to 0"),
        ("training.steps=0", "training.steps=0: should be greater than 0"),
        ("training.batch_size=-3", "training.batch_size=-3: should be greater than 0"),
        ("training.warmup_ratio=1.5", "training.warmup_ratio=1.5: should be less than or equal to 1"),
        ("training.clip_norm=-1", "training.clip_norm=-1: should be greater than 0"),
        ("training.schedule=cosin", "training.schedule=cosin: should be 'cosine', 'linear', 'constant' or 'step'"),
        ("engine.zero_stage=4", "engine.zero_stage=4: should be 0, 1, 2 or 3"),
        ("engine.precision=fp16", "engine.precision=fp16: should be 'fp32', 'bf16' or 'bf16_autocast'"),
        ("model.kind=vision", "model.kind=vision: should be 'causal', "),
        ("dataset.size=0", "dataset.size=0: should be greater than 0"),
        ("evaluation.limit=0", "evaluation.limit=0: should be greater than 0"),
        ("evaluation.tasks=[{name:gsm8k,num_fewshot:-1}]", "evaluation.tasks.0.num_fewshot=-1: "),
        ("keep=some", "keep=some: should be 'none', 'last', 'best' or 'all'"),
        ("rerun=yes", "rerun=yes: should be 'missing', 'stale' or 'all'"),
        ("outputs=", "outputs=: "),
        ("dataset.completion=", "dataset.completion must be a template, got ''"),
        # Rules over several keys.
        ("training.epochs=1", "must set exactly one of training.steps (2) and training.epochs (1.0)"),
        ("training.steps=null", "must set exactly one of training.steps (None) and training.epochs (None)"),
        ("engine.offload=all", "engine.offload=all needs engine.zero_stage >= 3, got 0"),
        ("model.id=gpt2", "must set exactly one of model.id, model.from_run, model.from_runs, model.architecture"),
        ("model.tokenizer=null", "model.tokenizer must be given with model.architecture"),
        ("dataset.source=hub", "dataset.path must be set for source hub"),
        (
            "dataset.type=pairs",
            "dataset.type=pairs: should be 'completion', 'problem', 'pair', 'labelled', 'negative', 'ranked' or",
        ),
        ("dataset={source:file,path:x,type:pair,chosen:''}", "dataset.chosen must be a template, got ''"),
        ("dataset={source:file,path:x,type:ranked,scores:s}", "dataset.scores must name one column, as {scores} does"),
        (
            "dataset={source:file,path:x,type:groups,rejected:'{a}{b}'}",
            "dataset.rejected must name one column, as {rej",
        ),
        (
            "dataset={source:file,path:x,type:pair,layout:messages,chosen:'{a} x'}",
            "dataset.chosen must name one column",
        ),
        (
            "dataset={source:file,path:x,layout:messages,chat:true}",
            "dataset.chat=true: only for layout columns, as mess",
        ),
        (
            "dataset={source:file,path:x,type:pair,loss_on:all}",
            "dataset.loss_on=all: only for type completion, as a re",
        ),
        ("dataset={source:file,path:x,options:{flips:0.1}}", "dataset.options={'flips': 0.1}: only source mini_world"),
        ("dataset.options={flips:0.1}", "dataset.options={'flips': 0.1}: skill relabelled_copy has none"),
        (
            f"dataset={PAIRS},options:{{flip:0.1}}}}",
            "dataset.options.flip=0.1: preference_pairs has no such option (near",
        ),
        (f"dataset={PAIRS},options:{{flips:1.5}}}}", "dataset.options.flips=1.5: must be a number between 0 and 1"),
        (f"dataset={PAIRS},options:{{flips:much}}}}", "dataset.options.flips=much: should be a valid number"),
        # Names that only the data, the tasks or the code know.
        ("dataset.skill=copi", "dataset.skill=copi: no such skill (nearest: copy)"),
        ("dataset.skill=preference_pair", "dataset.skill=preference_pair: no such skill (nearest: preference_pairs"),
        ("evaluation.tasks=[gsm8kk]", "evaluation.tasks: unknown lm-eval task 'gsm8kk' (nearest: gsm8k"),
        ("evaluation.tasks=[gsm8k,gsm8k]", "evaluation.tasks: each task must be asked for once"),
        ("evaluation.tasks=[mbpp]", "evaluation.confirm_run_unsafe_code must be true for mbpp"),
        ("optimizer._target_=torch.optim.AdamWW", "_target_=torch.optim.AdamWW: the module has no such class"),
        ("optimizer._target_=torhc.optim.AdamW", "_target_=torhc.optim: no such module"),
        ("optimizer._target_=AdamW", "_target_=AdamW: must be a dotted path to a class"),
        # Files and folders.
        ("evaluation.data_root=/not/there", "evaluation.data_root=/not/there: no such folder"),
        ("evaluation.include_path=[/not/there]", "evaluation.include_path=/not/there: no such folder"),
        ("model.tokenizer=/not/there", "model.tokenizer=/not/there: neither a hub id nor an existing folder"),
    ],
)
def test_one_line_names_key_value_and_rule(override: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        changed(override)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["method=preference/dpo", "dataset=preference_pairs", "mix=replay", "mix.weight=null"],
            "mix.weight=null: one mean over all tokens, and method=preference/dpo takes its mean over groups",
        ),
        (
            ["method=finetune/implicit_reward", "method.level=sequence", "mix=replay", "mix.weight=null"],
            "mix.weight=null: one mean over all tokens, and method=finetune/implicit_reward takes its mean over seq",
        ),
        (
            ['model.reference_run=["method=finetune/sft"]'],
            "model.reference_run=['method=finetune/sft']: method=finetune/sft and its parts have no reference",
        ),
        (
            ["method=preference/simpo", "dataset=preference_pairs", 'model.reference_run=["method=finetune/sft"]'],
            "model.reference_run=['method=finetune/sft']: method=preference/simpo and its parts have no reference",
        ),
        (
            ["method=preference/xpo", "dataset.chat=true", "method.reward={function:null,model:a/b,chat:true}"],
            "method.reward.chat=true: the prompts of dataset.chat=True are in a chat template already",
        ),
    ],
)
def test_what_does_not_go_together_is_one_line(composer: Path, words: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        run_spec(words)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_what_has_a_reference_may_name_one(composer: Path) -> None:
    named = 'model.reference_run=["method=finetune/sft"]'
    pairs = ["method=preference/dpo", "dataset=preference_pairs"]
    for words in (pairs, ["penalty=kl_reference"], ["method=finetune/implicit_reward"]):
        assert run_spec([*words, named]).reference is not None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method.temperature=-1", "method.temperature=-1: should be greater than 0 or should be 'median'"),
        ("method.temperature=mean", "method.temperature=mean: should be a valid number or should be 'median'"),
        ("method.normalize=3", "method.normalize=3: should be a valid boolean"),
        ("+method.temprature=3", "method.temprature=3: unknown key (nearest: temperature)"),
    ],
)
def test_hyper_parameters_are_checked_against_the_method(composer: Path, override: str, message: str) -> None:
    assert refusal("method=finetune/flow", override) == message


def test_model_without_weights_is_refused(composer: Path) -> None:
    message = "must set exactly one of model.id, model.from_run, model.from_runs, model.architecture, got []"
    assert refusal(base=("model=hf",)) == message


@pytest.mark.parametrize("name", ["/not/there", "a/b/c", "my model"])
def test_model_must_be_a_hub_id_or_a_folder(composer: Path, name: str) -> None:
    assert refusal(f"model.id='{name}'", base=("model=hf",)) == (
        f"model.id={name}: neither a hub id nor an existing folder"
    )


def test_code_that_the_model_writes_runs_when_allowed(composer: Path) -> None:
    run = spec("evaluation.tasks=[mbpp]", "evaluation.confirm_run_unsafe_code=true")
    assert run.config["evaluation"]["tasks"][0]["name"] == "mbpp"


def test_data_file_must_exist_and_be_of_a_known_kind(composer: Path) -> None:
    base = ("model=mini_random", "evaluation=none", "dataset=file")
    assert refusal(base=base) == "dataset.path must be set for source file"
    assert refusal("dataset.path=nowhere.jsonl", base=base) == "dataset.path=nowhere.jsonl: no such file"
    assert refusal("dataset.path=.", base=base) == "dataset.path=.: no such file"
    Path("notes.txt").write_text("x")
    assert refusal("dataset.path=notes.txt", base=base).startswith("dataset.path=notes.txt: must end in one of .jsonl")


def test_method_that_does_not_fit_the_kind_of_model(composer: Path, tmp_path: Path) -> None:
    method = METHOD.replace("    config: MineConfig\n", "    config: MineConfig\n    kinds = ('image',)\n")
    plugin = write_plugin(tmp_path / "images", "for_images", method)
    message = refusal(f"plugins={plugin}", "method=private/for_images")
    assert message == "method=for_images.Mine: fits models of kind image, got model.kind=causal"


# Of each type of data: a method that needs it, and what it says that is.
NEEDS = {
    "completion": ("finetune/sft", "prompts with a completion to imitate"),
    "pair": ("preference/dpo", "prompts with a chosen and a rejected response"),
    "labelled": ("private/labelled", "responses with a label, good or bad"),
    "negative": ("private/negative", "bad responses alone"),
    "ranked": ("private/ranked", "prompts with several scored responses"),
    "groups": ("private/groups", "prompts with a group of chosen and one of rejected responses"),
}
SKILLS = {
    "completion": "preference_demonstrations",
    "pair": "preference_pairs",
    "labelled": "preference_labelled",
    "negative": "preference_negatives",
    "ranked": "preference_ranked",
    "groups": "preference_groups",
}


def method_on(data: str) -> str:
    """The source of a private method that needs a type of data."""
    return METHOD.replace("    config: MineConfig\n", f"    config: MineConfig\n    data = ({data!r},)\n")


@pytest.fixture
def private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A private method for each type of data that none of ours is named for."""
    for data, (name, _) in NEEDS.items():
        if name.startswith("private/"):
            write_plugin(tmp_path / "plugin", name.removeprefix("private/"), method_on(data))
    monkeypatch.syspath_prepend(tmp_path / "plugin")


@pytest.mark.parametrize("needed", NEEDS)
def test_method_says_what_data_it_needs(private: None, needed: str) -> None:
    method, told = NEEDS[needed]
    group, name = method.split("/")
    target = f"{name}.Mine" if group == "private" else f"methods.{group}.{name}.{name.capitalize()}"
    for given, skill in SKILLS.items():
        config = OmegaConf.create(tiny_config() | {"method": {"_target_": target}})
        config.dataset.type, config.dataset.skill = given, skill
        if given == needed:
            assert check(config, {"method": method})["dataset"]["type"] == given
            continue
        with pytest.raises(UserError) as error:
            check(config, {"method": method})
        assert str(error.value) == f"dataset.type={given}: method={method} needs {needed} ({told})"


def test_what_trains_nothing_needs_no_data(composer: Path) -> None:
    assert spec("dataset=preference_pairs", base=UNTRAINED).config["dataset"]["type"] == "pair"


def test_parts_say_what_data_they_need(composer: Path) -> None:
    pairs = ("method=preference/dpo", "dataset=preference_pairs")
    expected = "dataset.type=pair: mix=self_distillation needs completion (prompts with a completion to imitate)"
    assert refusal(*pairs, "mix=self_distillation") == expected
    assert spec(*pairs, "mix=replay").config["mix"]["dataset"]["type"] == "completion"
    others = ("mix=replay", "mix.dataset.skill=preference_pairs", "+mix.dataset.type=pair")
    assert refusal(*pairs, *others).startswith("mix.dataset.loss_on=all: only for type completion")
    assert refusal(*pairs, *others, "mix.dataset.loss_on=completion") == (
        "mix.dataset.type=pair: mix=replay needs completion (prompts with a completion to imitate)"
    )


@pytest.mark.parametrize("name", ["ultrafeedback", "hh_rlhf", "tldr"])
def test_published_pairs_compose(composer: Path, name: str) -> None:
    base = ("model=mini_random", "evaluation=none", "tracker=none", "dataset.data_root=null", f"dataset={name}")
    assert spec("method=preference/dpo", base=base).config["dataset"]["type"] == "pair"
    assert refusal("method=finetune/sft", base=base).startswith(
        "dataset.type=pair: method=finetune/sft needs completion"
    )
    imitated = spec("method=finetune/sft", "dataset.type=completion", 'dataset.completion="{chosen}"', base=base)
    assert imitated.config["dataset"]["completion"] == "{chosen}"


def test_untrained_fits_every_kind_of_model(composer: Path) -> None:
    assert spec(base=UNTRAINED).choices["method"] == "untrained"

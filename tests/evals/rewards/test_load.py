"""Rewards by settings: functions by their path, reward models, and what is refused before and while they are asked."""

import subprocess
import sys

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from evals import preference_world
from evals.byte_tokenizer import byte_tokenizer
from evals.rewards.load import check_reward, load_reward

TOKENIZER = byte_tokenizer()
PROMPTS = ["next 48213:", "next 1:", "next 48213:"]
RESPONSES = ["59324", "", "59334...."]


@pytest.fixture
def judges(tmp_path, monkeypatch):
    """A module of the user's own, as `plugins=` puts it on the path."""
    (tmp_path / "own_judges.py").write_text(
        "from math import inf, nan\n"
        "raised = False\n"
        "def length(prompts, responses): return [len(r) for r in responses]\n"
        "def second_is_nan(prompts, responses): return [1.0, nan, 0.5]\n"
        "def infinite(prompts, responses): return [inf] * 3\n"
        "def too_few(prompts, responses): return [1.0]\n"
        "def refuses(prompts, responses): raise ValueError('no such prompt')\n"
        "if True:\n    seconds = length\n"
        "constant = 3\n"
    )
    (tmp_path / "own_failing.py").write_text("raise ImportError('needs a package')\ndef judge(): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("own_judges", None)


# Functions ------------------------------------------------------------------------------------------------------------


def test_the_mini_worlds_true_reward():
    reward = load_reward({"function": "evals.preference_world.reward", "model": None})
    assert reward(PROMPTS[:1] + PROMPTS[2:], RESPONSES[:1] + RESPONSES[2:]) == [1.0, 0.5]


def test_a_function_of_the_users_own(judges):
    for name in ("length", "seconds"):
        assert load_reward({"function": f"own_judges.{name}"})(PROMPTS, RESPONSES) == [5.0, 0.0, 9.0]


@pytest.mark.parametrize(("name", "message"), [
    ("second_is_nan", "must be finite, got nan for prompt 'next 1:'"),
    ("infinite", "must be finite, got inf for prompt 'next 48213:'"),
    ("too_few", "must give a number for each of 3 responses, got 1"),
    ("refuses", "no such prompt"),
])  # fmt: skip
def test_a_reward_that_cannot_be_used(judges, name, message):
    with pytest.raises(ValueError) as error:
        load_reward({"function": f"own_judges.{name}"})(PROMPTS, RESPONSES)
    assert str(error.value) == f"method.reward.function=own_judges.{name}: {message}"


def test_a_prompt_of_another_world_is_told():
    with pytest.raises(ValueError, match=r"^method\.reward\.function=.*: prompt must be of the preference world"):
        load_reward({"function": "evals.preference_world.reward"})(["What is 1+1?"], ["2"])


@pytest.mark.parametrize(("settings", "message"), [
    ({}, "method.reward={}: must name either a function or a model"),
    ({"function": "a.b", "model": "c"}, "must name either a function or a model"),
    ({"functoin": "a.b"}, "method.reward.functoin=a.b: unknown key; a reward has function, model, batch_size, chat"),
    ({"function": "reward"}, "method.reward.function=reward: must be the dotted path of a function"),
    ({"function": "evals.preference world.x"}, "must be the dotted path of a function"),
    ({"function": "nowhere.at.all"}, "method.reward.function=nowhere.at.all: there is no module nowhere"),
    ({"function": "evals.nowhere.reward"}, "there is no module evals.nowhere"),
    ({"function": "evals.preference_world.rewards"}, "the module has no rewards"),
    ({"model": "no/such/folder"}, "method.reward.model=no/such/folder: neither a hub id nor an existing folder"),
    ({"model": "a/b", "batch_size": 0}, "method.reward.batch_size=0: must be a whole number >= 1"),
    ({"model": "a/b", "batch_size": True}, "method.reward.batch_size=True: must be a whole number >= 1"),
    ({"model": "a/b", "chat": "yes"}, "method.reward.chat=yes: must be true or false"),
])  # fmt: skip
def test_settings_that_are_refused_without_importing_anything(settings, message):
    with pytest.raises(ValueError) as error:
        check_reward(settings)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_checking_imports_neither_the_function_nor_torch():
    code = (
        "import sys\n"
        "from evals.rewards.load import check_reward\n"
        "check_reward({'function': 'runners.run.run'})\n"
        "assert not {'torch', 'transformers', 'runners.run'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_only_importing_tells(judges):
    check_reward({"function": "own_failing.judge"})
    with pytest.raises(ValueError, match=r"^method\.reward\.function=own_failing\.judge: cannot be imported: needs"):
        load_reward({"function": "own_failing.judge"})
    with pytest.raises(ValueError, match=r"own_judges\.constant: must be a function, got int"):
        load_reward({"function": "own_judges.constant"})


def test_every_skills_rewards_are_in_range():
    rows = preference_world.rows("preference_ranked", "train", 20, 0)
    reward = load_reward({"function": "evals.preference_world.reward"})
    for row in rows:
        assert reward([row["prompt"]] * 4, row["responses"]) == row["scores"]


# Reward models --------------------------------------------------------------------------------------------------------


def sizes(**changes):
    return LlamaConfig(
        vocab_size=len(TOKENIZER), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=128, initializer_range=0.5, **changes,
    )  # fmt: skip


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory):
    """A folder with a classifier of one output that reads bytes, and the classifier."""
    folder = tmp_path_factory.mktemp("reward")
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(sizes(num_labels=1, pad_token_id=TOKENIZER.pad_token_id)).eval()
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder, model


def said_by(model, tokenizer, texts, add_special_tokens=True):
    """What a classifier says of texts, one at a time and without padding."""
    with torch.no_grad():
        ids = [tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"] for text in texts]
        return [float(model(torch.tensor([one])).logits) for one in ids]


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_a_reward_model_reads_prompt_and_response(reward_model, batch_size):
    """One text at a time, without padding, gives the same: the number of responses at a time changes nothing."""
    folder, model = reward_model
    found = load_reward({"model": str(folder), "batch_size": batch_size})(PROMPTS, RESPONSES)
    expected = said_by(model, TOKENIZER, [p + r for p, r in zip(PROMPTS, RESPONSES, strict=True)])
    assert found == pytest.approx(expected, abs=1e-5)
    assert len(set(expected)) == 3


def test_a_reward_model_with_its_chat_template(reward_model, tmp_path):
    _, model = reward_model
    model.save_pretrained(tmp_path)
    chatting = byte_tokenizer()
    chatting.chat_template = None
    chatting.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"^method\.reward\.model=.*: has no chat template, which chat: true needs$"):
        load_reward({"model": str(tmp_path), "chat": True})
    chatting.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    chatting.save_pretrained(tmp_path)
    found = load_reward({"model": str(tmp_path), "chat": True})(PROMPTS[:1], RESPONSES[:1])
    expected = said_by(model, chatting, ["<user>next 48213:<assistant>59324"], add_special_tokens=False)
    assert found == pytest.approx(expected, abs=1e-5)


def test_models_that_give_no_reward(tmp_path):
    torch.manual_seed(0)
    TOKENIZER.save_pretrained(tmp_path)
    LlamaForSequenceClassification(sizes(num_labels=3)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"must have one output, got 3$"):
        load_reward({"model": str(tmp_path)})
    LlamaForCausalLM(sizes(num_labels=1)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"has no weights for score\.weight; it was not trained to give rewards$"):
        load_reward({"model": str(tmp_path)})
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"^method\.reward\.model=.*: cannot be loaded: ") as error:
        load_reward({"model": str(tmp_path)})
    assert "\n" not in str(error.value)


def test_a_reward_model_without_a_padding_token_reads_its_last_token(reward_model, tmp_path):
    """EOS in its place would be taken for padding, and the token before it for the last."""
    _, model = reward_model
    model.save_pretrained(tmp_path)
    chatting = byte_tokenizer()
    chatting.pad_token = None
    chatting.save_pretrained(tmp_path)
    found = load_reward({"model": str(tmp_path), "chat": True})(PROMPTS, RESPONSES)
    texts = [f"[user]{p}<eos>[assistant]{r}<eos>" for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    assert found == pytest.approx(said_by(model, chatting, texts, add_special_tokens=False), abs=1e-5)


def test_a_text_that_is_too_long_for_a_reward_model(reward_model):
    folder, _ = reward_model
    with pytest.raises(
        ValueError, match=r"^method\.reward\.model=.*: takes at most 128 tokens, a prompt with its response"
    ):
        load_reward({"model": str(folder)})(PROMPTS[:1], ["1" * 128])

"""The lm-eval adapter: known scores, cut prompts, few-shot examples, local data, and no trace left behind.

Where a score can be worked out by hand the model is a stand-in with known logits, else it is a random Llama.
"""

import dataclasses
import json
import logging
import math
import os
import random

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutput

from evals import mini_world
from evals.harness import TaskRequest, evaluate
from tests.evals.tiny import GENERATED, SCORED, byte_tokenizer, config, write_json_lines, write_task

LOGIT = 4.0


class CopyModel(LlamaForCausalLM):
    """Predicts the token five places back with `LOGIT`, all others with 0: right about "copy 12345:12345"."""

    def forward(self, input_ids, **unused):
        predicted = input_ids.roll(5, dims=1)
        return CausalLMOutput(logits=LOGIT * torch.nn.functional.one_hot(predicted, 258).float())


# The negative log-likelihood of a five-token answer that CopyModel gets right, by hand.
COPIED_NLL = 5 * math.log(1 + 257 * math.exp(-LOGIT))


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(config()).eval()


@pytest.fixture(scope="module")
def copier():
    return CopyModel(config())


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def run(model, tokenizer, *requests, seed=0, batch_size=16, **arguments):
    requests = [request if isinstance(request, TaskRequest) else TaskRequest(request) for request in requests]
    return evaluate(model, tokenizer, requests, seed=seed, batch_size=batch_size, progress=False, **arguments)


# Scores -----------------------------------------------------------------------------------------------------


def test_a_model_that_is_always_right(copier, tokenizer):
    result = run(copier, tokenizer, "mini_world_copy")
    assert result.metrics["mini_world_copy"] == {
        "acc,none": 1.0,
        "acc_stderr,none": 0.0,
        "nll,none": pytest.approx(COPIED_NLL),
        "nll_stderr,none": pytest.approx(0.0, abs=1e-6),
    }
    assert result.n_samples == {"mini_world_copy": {"effective": 250, "original": 250}}
    assert result.higher_is_better["mini_world_copy"] == {"acc": True, "nll": False}


def test_a_model_that_is_always_wrong(copier, tokenizer):
    # Each of the five digits is predicted elsewhere, which costs its token the whole logit.
    result = run(copier, tokenizer, "mini_world_relabelled_copy_hard", "mini_world_complement")
    for task in ("mini_world_relabelled_copy_hard", "mini_world_complement"):
        assert result.metrics[task]["acc,none"] == 0.0
        assert result.metrics[task]["nll,none"] == pytest.approx(COPIED_NLL + 5 * LOGIT)


def test_parts_of_the_target_skill(copier, tokenizer):
    result = run(copier, tokenizer, "mini_world_relabelled_copy", "mini_world_relabelled_copy_easy")
    share = np.mean([item.part == "easy" for item in mini_world.items("relabelled_copy", "test", 250, 0)])
    assert share == 0.4
    assert result.metrics["mini_world_relabelled_copy"]["acc,none"] == pytest.approx(share)
    stderr = math.sqrt(share * (1 - share) / 249)
    assert result.metrics["mini_world_relabelled_copy"]["acc_stderr,none"] == pytest.approx(stderr)
    assert result.metrics["mini_world_relabelled_copy_easy"]["acc,none"] == 1.0


def test_group_is_the_mean_of_its_skills(copier, tokenizer):
    result = run(copier, tokenizer, TaskRequest("mini_world_general", metadata={"count": 40}))
    members = [f"mini_world_{skill}" for skill in ("reverse", "increment", "sort", "rotate", "complement")]
    assert result.groups == {"mini_world_general": members}
    assert set(result.metrics) == {"mini_world_general", *members}
    for metric in ("acc,none", "nll,none"):
        mean = np.mean([result.metrics[member][metric] for member in members])
        assert result.metrics["mini_world_general"][metric] == pytest.approx(mean)
    stderrs = [result.metrics[member]["nll_stderr,none"] for member in members]
    assert result.metrics["mini_world_general"]["nll_stderr,none"] == pytest.approx(np.linalg.norm(stderrs) / 5)


@pytest.mark.parametrize("skill", [skill for skill in mini_world.SKILLS if skill != "word_problems"])
@pytest.mark.parametrize("add_bos", [False, True])
def test_nll_is_that_of_a_direct_computation(llama, skill, add_bos):
    tokenizer = byte_tokenizer(add_bos)
    result = run(llama, tokenizer, TaskRequest(f"mini_world_{skill}", limit=5))
    direct = []
    for item in mini_world.items(skill, "test", 5, 0):
        prompt = tokenizer(item.prompt).input_ids
        ids = torch.tensor([tokenizer(item.prompt + item.answer).input_ids])
        with torch.no_grad():
            token_logps = llama(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])
        direct.append(-token_logps[len(prompt) - 1 :].sum().item())
    assert result.metrics[f"mini_world_{skill}"]["nll,none"] == pytest.approx(np.mean(direct), rel=1e-5)
    assert [sample["nll"] for sample in result.samples[f"mini_world_{skill}"]] == pytest.approx(direct, rel=1e-5)


class Answering(LlamaForCausalLM):
    """Generates what `answers` has for a prompt."""

    answers: dict[str, str]

    def generate(self, input_ids, **settings):
        assert settings["do_sample"] is False
        tokenizer = byte_tokenizer()
        prompts = tokenizer.batch_decode(input_ids, skip_special_tokens=True)
        answers = [torch.tensor(tokenizer(self.answers[prompt]).input_ids) for prompt in prompts]
        padded = torch.nn.utils.rnn.pad_sequence(answers, batch_first=True, padding_value=1)
        return torch.cat([input_ids, padded], dim=1)


@pytest.mark.parametrize("spoil", [False, True])
def test_word_problems_are_scored_by_their_number(tokenizer, spoil):
    items = mini_world.items("word_problems", "test", 10, 0)
    answers = {item.prompt: item.answer.replace("####", "###") if spoil else item.answer for item in items}
    answers[items[0].prompt] = "nonsense\n#### " + items[0].answer.split()[-1] + "\n\n#### 12345"
    model = Answering(config())
    model.answers = answers
    result = run(model, tokenizer, TaskRequest("mini_world_word_problems", limit=10))
    expected = 0.1 if spoil else 1.0
    assert result.metrics["mini_world_word_problems"]["exact_match,strict-match"] == pytest.approx(expected)


def test_generation_of_a_real_model(llama, tokenizer):
    result = run(llama, tokenizer, TaskRequest("mini_world_word_problems", limit=3))
    responses = [sample["resps"][0][0] for sample in result.samples["mini_world_word_problems"]]
    assert len(responses) == 3 and all(isinstance(response, str) for response in responses)
    item = mini_world.items("word_problems", "test", 1, 0)[0]
    ids = tokenizer(item.prompt, return_tensors="pt").input_ids
    greedy = llama.generate(ids, do_sample=False, max_new_tokens=32, pad_token_id=1)[0, ids.shape[1] :]
    assert responses[0] == tokenizer.decode(greedy, skip_special_tokens=True).split("\n\n")[0]


# Independence and determinism -------------------------------------------------------------------------------


def test_same_seed_same_result_whatever_the_state_and_the_company(llama, tokenizer):
    sampled = TaskRequest("mini_world_sort", limit=20)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    alone = run(llama, tokenizer, sampled)
    random.seed(2), np.random.seed(2), torch.manual_seed(2)
    in_company = run(llama, tokenizer, TaskRequest("mini_world_copy", limit=7), sampled)
    assert alone.metrics["mini_world_sort"] == in_company.metrics["mini_world_sort"]
    assert alone.samples["mini_world_sort"] == in_company.samples["mini_world_sort"]


def test_sampled_answers_depend_on_the_seed_only(tmp_path, llama, tokenizer):
    rows = [{"prompt": "abc", "answer": "d"}] * 3
    yaml = GENERATED.replace("do_sample: false", "do_sample: true, temperature: 1.0")
    write_task(tmp_path, "sampled", rows, yaml)

    def responses(*requests, seed):
        result = run(llama, tokenizer, *requests, seed=seed, include_path=tmp_path)
        return [sample["resps"] for sample in result.samples["sampled"]]

    first = responses("sampled", seed=1)
    assert responses(TaskRequest("mini_world_word_problems", limit=2), "sampled", seed=1) == first
    assert responses("sampled", seed=2) != first


def test_no_trace_is_left(llama, tokenizer):
    llama.train()
    llama.model.layers[1].eval()
    modes = [module.training for module in llama.modules()]
    logger_levels = logging.getLogger("lm_eval").level, logging.getLogger("lm_eval").filters[:]
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    environment = dict(os.environ)
    weights = [parameter.clone() for parameter in llama.parameters()]
    try:
        run(
            llama,
            tokenizer,
            TaskRequest("mini_world_copy", limit=5),
            TaskRequest("mini_world_word_problems", limit=2),
        )
        assert [module.training for module in llama.modules()] == modes
    finally:
        llama.eval()
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before
    assert all(torch.equal(old, new) for old, new in zip(weights, llama.parameters(), strict=True))
    assert dict(os.environ) == environment
    assert (logging.getLogger("lm_eval").level, logging.getLogger("lm_eval").filters) == logger_levels
    assert tokenizer.pad_token is None and len(tokenizer) == 258


def test_dropout_is_off(llama, tokenizer):
    request = TaskRequest("mini_world_copy", limit=5)
    expected = run(llama, tokenizer, request).metrics
    llama.train()
    try:
        assert run(llama, tokenizer, request).metrics == expected
    finally:
        llama.eval()


def test_all_is_restored_after_an_error(llama, tokenizer, monkeypatch):
    llama.train()
    monkeypatch.setattr(LlamaForCausalLM, "forward", lambda *_, **__: 1 / 0)
    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError):
        run(llama, tokenizer, TaskRequest("mini_world_copy", limit=5))
    assert llama.training and torch.equal(torch.get_rng_state(), before) and tokenizer.pad_token is None
    llama.eval()


def test_nothing_is_printed_and_only_news_is_logged(llama, tokenizer, capfd, caplog):
    with caplog.at_level(logging.WARNING):
        run(
            llama,
            tokenizer,
            TaskRequest("mini_world_general", limit=3),
            TaskRequest("mini_world_word_problems", limit=2),
        )
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


def test_result_is_json(llama, tokenizer):
    result = run(
        llama,
        tokenizer,
        TaskRequest("mini_world_general", limit=3),
        TaskRequest("mini_world_word_problems", limit=2),
    )
    assert json.loads(json.dumps(dataclasses.asdict(result), allow_nan=False)) == dataclasses.asdict(result)
    assert result.lm_eval_version and result.task_versions["mini_world_sort"] == 1.0
    sample = result.samples["mini_world_sort"][0]
    assert sample["doc"]["prompt"] == sample["arguments"][0][0] == mini_world.items("sort", "test", 1, 0)[0].prompt


def test_samples_can_be_left_out(llama, tokenizer):
    assert run(llama, tokenizer, TaskRequest("mini_world_copy", limit=3), log_samples=False).samples == {}


def test_batches_do_not_matter(llama, tokenizer):
    scored = TaskRequest("mini_world_word_problems", limit=6), TaskRequest("mini_world_reverse", limit=6)
    one, many = (run(llama, tokenizer, *scored, batch_size=size) for size in (1, 6))
    assert one.metrics["mini_world_reverse"] == pytest.approx(many.metrics["mini_world_reverse"], rel=1e-5)
    responses = [[sample["resps"] for sample in result.samples["mini_world_word_problems"]] for result in (one, many)]
    assert responses[0] == responses[1]


# What a request changes -------------------------------------------------------------------------------------


def test_metadata_chooses_items_and_reaches_no_other_request(copier, tokenizer):
    result = run(
        copier,
        tokenizer,
        TaskRequest("mini_world_copy", metadata={"split": "validation", "count": 4, "seed": 5}),
        TaskRequest("mini_world_reverse", limit=4),
        TaskRequest("mini_world_relabelled_copy_hard", metadata={"count": 3}),
    )
    prompts = {task: [sample["doc"]["prompt"] for sample in samples] for task, samples in result.samples.items()}
    assert prompts == {
        "mini_world_copy": [item.prompt for item in mini_world.items("copy", "validation", 4, 5)],
        "mini_world_reverse": [item.prompt for item in mini_world.items("reverse", "test", 4, 0)],
        "mini_world_relabelled_copy_hard": [
            item.prompt for item in mini_world.items("relabelled_copy", "test", 3, 0, "hard")
        ],
    }
    assert result.n_samples["mini_world_reverse"] == {"effective": 4, "original": 250}


def test_wrong_metadata_values_are_named(copier, tokenizer):
    with pytest.raises(ValueError, match="split must be one of train, validation, test, got 'tset'"):
        run(copier, tokenizer, TaskRequest("mini_world_copy", metadata={"split": "tset"}))


def test_the_smaller_of_two_limits_counts(copier, tokenizer):
    requests = TaskRequest("mini_world_copy", limit=7), TaskRequest("mini_world_reverse", limit=2), "mini_world_sort"
    result = run(copier, tokenizer, *requests, limit=3)
    assert {task: counts["effective"] for task, counts in result.n_samples.items()} == {
        "mini_world_copy": 3,
        "mini_world_reverse": 2,
        "mini_world_sort": 3,
    }


@pytest.fixture
def fewshot_tasks(tmp_path):
    train = [{"prompt": f"q{number}=", "answer": f"{number};"} for number in range(8)]
    for name, shots in {"free": "", "three": "num_fewshot: 3\n", "fixed": "num_fewshot: 0\n"}.items():
        write_task(
            tmp_path,
            name,
            [{"prompt": "q9=", "answer": "9;"}],
            SCORED + shots + "fewshot_delimiter: ' '\n",
            train,
        )
    return tmp_path


def test_fewshot_is_set_per_task(copier, tokenizer, fewshot_tasks, caplog):
    result = run(
        copier,
        tokenizer,
        TaskRequest("free", num_fewshot=2),
        "three",
        TaskRequest("fixed", num_fewshot=5),
        include_path=fewshot_tasks,
    )
    shown = {task: samples[0]["arguments"][0][0].count(";") for task, samples in result.samples.items()}
    assert shown == result.num_fewshot == {"free": 2, "three": 3, "fixed": 0}
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        "fixed: num_fewshot stays 0, which the task fixes, instead of 5"
    ]
    assert run(copier, tokenizer, "free", include_path=fewshot_tasks).num_fewshot == {"free": 0}
    assert run(copier, tokenizer, TaskRequest("three", num_fewshot=0), include_path=fewshot_tasks).num_fewshot == {
        "three": 0
    }


def test_fewshot_examples_depend_on_the_seed_only(copier, tokenizer, fewshot_tasks):
    def prompt(seed):
        result = run(copier, tokenizer, "three", include_path=fewshot_tasks, seed=seed)
        return result.samples["three"][0]["arguments"][0][0]

    assert prompt(1) == prompt(1)
    assert len({prompt(seed) for seed in range(5)}) > 1


def test_more_examples_than_there_are(copier, tokenizer, fewshot_tasks):
    with pytest.raises(ValueError, match=r"tasks\.three\.num_fewshot must be at most 8, .* three has, got 9"):
        run(copier, tokenizer, TaskRequest("three", num_fewshot=9), include_path=fewshot_tasks)


# Cut prompts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("max_length", "cut"), [(15, 0), (14, 4)])
def test_cut_prompts_of_scored_answers(copier, tokenizer, caplog, max_length, cut):
    caplog.set_level(logging.WARNING)
    # "copy 12345:" and its answer have 11 + 5 tokens, of which the last is not read.
    result = run(copier, tokenizer, TaskRequest("mini_world_copy", limit=4), max_length=max_length)
    assert result.cut_prompts == {"mini_world_copy": cut}
    assert len(caplog.records) == (cut > 0)
    if cut:
        assert caplog.messages == ["mini_world_copy: 4 of 4 prompts were cut from the left to fit into 14 tokens"]


def test_bos_counts_as_a_token(copier):
    result = run(copier, byte_tokenizer(add_bos=True), TaskRequest("mini_world_copy", limit=4), max_length=15)
    assert result.cut_prompts == {"mini_world_copy": 4}


def test_cut_prompts_are_counted_by_task_and_document(tmp_path, copier, tokenizer, caplog):
    rows = [{"prompt": "x" * length, "answer": "yy"} for length in (5, 19, 20, 40)]
    write_task(tmp_path, "scored", rows, SCORED)
    write_task(tmp_path, "repeated", rows, GENERATED + "repeats: 2\n")
    choices = "output_type: multiple_choice\ndoc_to_choice: ['yyyy', 'yy', 'y']\n"
    write_task(tmp_path, "choices", rows, choices)
    model = Answering(config())
    model.answers = {"x" * length: "yy" for length in range(41)}
    # Of 20 tokens, answers of 1, 2, 4 leave 20, 19, 17 for the prompt, a generated one of up to 8 leaves 12.
    result = run(model, tokenizer, "scored", "repeated", "choices", include_path=tmp_path, max_length=20)
    assert result.cut_prompts == {"scored": 2, "repeated": 3, "choices": 3}
    assert sum("cut from the left" in message for message in caplog.messages) == 3


def test_answers_that_do_not_fit_at_all(tmp_path, llama, copier, tokenizer):
    with pytest.raises(ValueError, match="answer of mini_world_copy has 5 tokens, it must have at most 4"):
        run(copier, tokenizer, "mini_world_copy", max_length=4)
    with pytest.raises(ValueError, match="mini_world_word_problems generates up to 32 tokens, it must be less than 32"):
        run(llama, tokenizer, "mini_world_word_problems", max_length=32)


# BOS --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["scored", "generated"])
@pytest.mark.parametrize(
    ("add_bos", "prompt", "expected"),
    [(True, "ab", 1), (True, "<bos>ab", 1), (False, "ab", 0), (False, "<bos>ab", 1)],
)
def test_never_two_bos(tmp_path, llama, kind, add_bos, prompt, expected):
    write_task(tmp_path, kind, [{"prompt": prompt, "answer": "cd"}], {"scored": SCORED, "generated": GENERATED}[kind])
    seen = []
    hook = llama.register_forward_pre_hook(
        lambda module, arguments, keywords: seen.append(
            keywords["input_ids"] if "input_ids" in keywords else arguments[0]
        ),
        with_kwargs=True,
    )
    try:
        run(llama, byte_tokenizer(add_bos), kind, include_path=tmp_path)
    finally:
        hook.remove()
    tokenizer = byte_tokenizer()
    text = tokenizer("abc" if kind == "scored" else "ab").input_ids
    assert seen[0].tolist() == [[0] * expected + text]


# Local data -------------------------------------------------------------------------------------------------


def gsm8k_rows(numbers):
    return [{"question": f"{number} and 1?", "answer": f"It is {number + 1}.\n#### {number + 1}"} for number in numbers]


@pytest.mark.parametrize("place", ["gsm8k", "openai/gsm8k", "gsm8k/main"])
def test_hub_task_reads_its_local_copy(tmp_path, tokenizer, place, caplog):
    write_json_lines(tmp_path / place / "train.jsonl", gsm8k_rows(range(6)))
    write_json_lines(tmp_path / place / "test.jsonl", gsm8k_rows(range(10, 13)))
    model = LlamaForCausalLM(LlamaConfig(**{**config().to_dict(), "max_position_embeddings": 640}))
    with caplog.at_level(logging.INFO, logger="evals.harness"):
        result = run(model, tokenizer, TaskRequest("gsm8k", limit=2), data_root=tmp_path)
    assert set(result.metrics["gsm8k"]) >= {"exact_match,strict-match", "exact_match_stderr,flexible-extract"}
    assert result.n_samples["gsm8k"] == {"effective": 2, "original": 3}
    assert result.num_fewshot == {"gsm8k": 5} and result.cut_prompts == {"gsm8k": 0}
    prompt = result.samples["gsm8k"][0]["arguments"][0][0]
    assert prompt.endswith("Question: 10 and 1?\nAnswer:") and prompt.count("####") == 5
    assert any(str(tmp_path / place / "test.jsonl") in message for message in caplog.messages)


def test_members_of_a_group_read_their_own_copies(tmp_path, copier, tokenizer):
    (tmp_path / "tasks").mkdir()
    for name in ("one", "two"):
        (tmp_path / "tasks" / f"{name}.yaml").write_text(
            f"task: {name}\ndataset_path: someone/some\ndataset_name: {name}\nvalidation_split: validation\n"
            f"doc_to_text: prompt\ndoc_to_target: answer\n{SCORED}"
        )
        rows = [{"prompt": name, "answer": "a"}]
        write_json_lines(tmp_path / "data" / "some" / name / "validation.jsonl", rows)
    (tmp_path / "tasks" / "group.yaml").write_text("group: both\ntask: [one, two]\n")
    result = run(copier, tokenizer, "both", include_path=tmp_path / "tasks", data_root=tmp_path / "data")
    assert {task: samples[0]["doc"]["prompt"] for task, samples in result.samples.items()} == {
        "one": "one",
        "two": "two",
    }


def test_set_without_a_usable_copy_comes_from_the_hub(tmp_path, llama, tokenizer, caplog, monkeypatch):
    asked = []

    def hub(path, name=None, **_):
        asked.append((path, name))
        raise ConnectionError("no network")

    monkeypatch.setattr("datasets.load_dataset", hub)
    # A copy without the few-shot split will not do, nor one of an unknown configuration where one is named.
    write_json_lines(tmp_path / "gsm8k" / "test.jsonl", gsm8k_rows(range(3)))
    write_json_lines(tmp_path / "ai2_arc" / "test.jsonl", [{"question": "?"}])
    write_json_lines(tmp_path / "ai2_arc" / "train.jsonl", [{"question": "?"}])
    with caplog.at_level(logging.INFO, logger="evals.harness"):
        for task in ("gsm8k", "arc_easy"):
            with pytest.raises(ConnectionError):
                run(llama, tokenizer, task, data_root=tmp_path)
    assert asked == [("openai/gsm8k", "main"), ("allenai/ai2_arc", "ARC-Easy")]
    assert caplog.messages == [
        f"gsm8k: reads openai/gsm8k from the hub (no train in {tmp_path})",
        f"arc_easy: reads allenai/ai2_arc from the hub (no copy in {tmp_path})",
    ]


@pytest.mark.skipif("RETABLE_DATA" not in os.environ, reason="RETABLE_DATA does not say where the real data is")
def test_real_gsm8k(tokenizer):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**config().to_dict(), "max_position_embeddings": 1024}))
    result = run(model, tokenizer, TaskRequest("gsm8k", limit=2), data_root=os.environ["RETABLE_DATA"])
    assert result.n_samples["gsm8k"] == {"effective": 2, "original": 1319}
    assert result.samples["gsm8k"][0]["doc"]["question"].startswith("Janet")
    assert 0 <= result.metrics["gsm8k"]["exact_match,strict-match"] <= 1
    # Five worked examples have far more than 1,024 bytes.
    assert result.cut_prompts == {"gsm8k": 2}


# Bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "evaluation.batch_size must be a whole number >= 1, got 0"),
        ({"batch_size": "auto"}, "evaluation.batch_size must be a whole number >= 1, got 'auto'"),
        ({"limit": 0}, "evaluation.limit must be >= 1, got 0"),
        ({"max_length": 1}, "evaluation.max_length must be >= 2, got 1"),
        ({"max_length": 257}, "evaluation.max_length must be <= 256, the model's own, got 257"),
        ({"data_root": "/nowhere"}, "evaluation.data_root must be an existing folder, got /nowhere"),
        (
            {"apply_chat_template": True},
            "evaluation.apply_chat_template must be false for a tokenizer without one, got true",
        ),
    ],
)
def test_argument_out_of_range(llama, tokenizer, arguments, message):
    with pytest.raises(ValueError) as caught:
        run(llama, tokenizer, "mini_world_copy", **arguments)
    assert str(caught.value) == message


def test_unknown_task(llama, tokenizer):
    with pytest.raises(ValueError, match=r"unknown lm-eval task 'mini_world_cpy' \(nearest: mini_world_copy"):
        run(llama, tokenizer, "mini_world_cpy")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"eos": None}, "must have an EOS token"), ({"add_eos": True}, "must not put EOS after a prompt")],
)
def test_unusable_tokenizer(llama, arguments, message):
    with pytest.raises(ValueError, match=message):
        run(llama, byte_tokenizer(**arguments), "mini_world_copy")

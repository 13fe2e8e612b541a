"""Self-distillation of the data: which answers are kept, in which order, and what final answers are."""

import pytest
from pydantic import TypeAdapter, ValidationError

from methods.mix.self_distillation import SelfDistillation, SelfDistillationConfig, final_answer, same_answer
from tests.methods.mix.fakes import EOS, TOKENIZER, FakeContext, byte_llama, encoded, lists

TEXTS = [
    ("Q: 1+1? A:", " It is two, #### 2"),
    ("Q: 3*4? A:", " So 12"),
    ("Q: 5-9? A:", " -4"),
    ("Q: name? A:", " Bob"),
]


def ids(text, end=True):
    return [*TOKENIZER(text, add_special_tokens=False)["input_ids"], *([EOS] if end else [])]


def mixed(written, texts=TEXTS, loss_on="completion", config=(), **settings):
    context = FakeContext(byte_llama(), texts, written=written, loss_on=loss_on, **dict(config))
    mix = SelfDistillation(SelfDistillationConfig(**settings))
    return context, mix, mix.examples(context)


@pytest.mark.parametrize(("text", "expected"), [
    ("so 3 + 4 = 7", "7"),
    ("it costs $1,234.50 in all", "1234.5"),
    ("1,000", "1000"),
    ("7.0", "7"),
    (".5 of it", "0.5"),
    ("minus: -12.", "-12"),
    ("between 3-5", "5"),
    ("(8)-2", "2"),
    ("0.0", "0"),
    ("-0", "0"),
    ("100", "100"),
    ("no number", None),
    ("", None),
    ("first 3\n#### 18", "18"),
    ("#### 3\n#### $1,800\nI think 4", "1800"),
    ("#### Paris ", "paris"),
    ("#### 3 apples", "3 apples"),
    ("text ####", None),
])  # fmt: skip
def test_final_answer(text, expected):
    assert final_answer(text) == expected


def test_same_answer():
    assert same_answer("I get 18.", "He has 9 + 9 = 18\n#### 18")
    assert same_answer("#### 1000", "1,000.0")
    assert not same_answer("I get 17.", "#### 18")
    assert not same_answer("none", "none"), "an original without an answer is never matched"


def test_kept_where_the_answer_is_the_same():
    written = [ids(" 1 and 1 make 2"), ids(" it is 13"), ids(" nine from five: -4"), ids(" Bob")]
    _, mix, examples = mixed(written)
    prompts = [TOKENIZER(prompt)["input_ids"] for prompt, _ in TEXTS]
    original = lists(encoded(TEXTS))
    assert lists(examples) == [[*prompts[0], *written[0]], original[1], [*prompts[2], *written[2]], original[3]]
    assert examples.targets.tolist() == [len(prompt) for prompt in prompts]
    assert mix.report(examples)["mix/rewritten"] == 0.5
    assert mix.replaces


def test_unchecked_all_are_kept_but_what_is_cut_or_empty():
    written = [ids(" anything"), ids(" cut", end=False), ids(" "), ids(" Rob")]
    _, mix, examples = mixed(written, check="none")
    original, found = lists(encoded(TEXTS)), lists(examples)
    kept = [sequence != before for sequence, before in zip(found, original, strict=True)]
    assert kept == [True, False, False, True]
    assert mix.report(examples)["mix/rewritten"] == 0.5


def test_the_base_model_sees_prompt_and_demonstration():
    context, _, _ = mixed([ids(" 2")] * 4, max_new_tokens=9, seed=5)
    (asked,) = context.asked
    shown = [TOKENIZER.decode(prompt) for prompt in asked.prompts]
    for text, (prompt, completion) in zip(shown, TEXTS, strict=True):
        assert text.startswith(f"<bos>{prompt}{completion}\n\n") and text.endswith(prompt)
        assert text.count("<bos>") == 1 and "<eos>" not in text
    assert (asked.sampling.temperature, asked.sampling.top_p, asked.sampling.max_new_tokens) == (1.0, 1.0, 9)
    assert asked.what == "self-distillation-5"


def test_braces_in_the_data_are_text():
    texts = [("{completion} {x}:", " {prompt} 3")]
    context, _, _ = mixed([ids(" 3")], texts, template="{prompt}|{completion}|{{}}")
    assert TOKENIZER.decode(context.asked[0].prompts[0]) == "<bos>{completion} {x}:| {prompt} 3|{}"


def test_loss_on_all_tokens_stays_on_all():
    _, _, examples = mixed([ids(" 2"), ids(" 12"), ids(" -4"), ids("x")], loss_on="all")
    assert examples.targets.tolist() == [1, 1, 1, 1]


def test_no_eos_where_the_data_set_has_none():
    config = {"dataset": {"add_eos": False, "loss_on": "completion"}}
    _, _, examples = mixed([ids(" 2"), ids(" 12"), ids(" -4"), ids("x")], config=config)
    assert EOS not in lists(examples)[0]


def test_what_is_longer_than_a_sequence_may_be_is_not_kept():
    written = [ids(" a long way to say 2"), ids(" 12"), ids(" -4"), ids("x")]
    longest = len(TOKENIZER(TEXTS[0][0])["input_ids"]) + len(written[0])
    for limit, kept in ((longest, 0.75), (longest - 1, 0.5)):
        _, mix, examples = mixed(written, config={"training": {"max_length": limit}})
        assert mix.report(examples)["mix/rewritten"] == kept


def test_by_the_model_itself_the_data_set_keeps_order_and_count():
    context = FakeContext(byte_llama(), TEXTS)
    mix = SelfDistillation(SelfDistillationConfig(max_new_tokens=5, check="none"))
    examples = mix.examples(context)
    assert len(examples) == len(TEXTS)
    for index, (prompt, _) in enumerate(TEXTS):
        assert examples.prompt(index).tolist() == TOKENIZER(prompt)["input_ids"]


@pytest.mark.parametrize(("template", "message"), [
    ("{prompt}", "must contain {prompt} and {completion}, nothing else"),
    ("{prompt}{completion}{answer}", "nothing else"),
    ("{prompt}{completion", "a literal brace is written twice"),
])  # fmt: skip
def test_template_that_lacks_a_field(template, message):
    with pytest.raises(ValueError, match=r"^mix\.template=") as caught:
        SelfDistillationConfig(template=template)
    assert message in str(caught.value)


@pytest.mark.parametrize(("key", "value"), [("top_p", 0.0), ("check", "judge"), ("max_new_tokens", 0)])
def test_out_of_range(key, value):
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(SelfDistillationConfig).validate_python({key: value})
    assert caught.value.errors()[0]["loc"] == (key,)

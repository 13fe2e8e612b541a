"""MedCalc-Bench: answers are read and judged as the benchmark does, on made-up notes in the data set's own columns."""

import datetime
import importlib.util

import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from evals.harness import TaskRequest, evaluate
from evals.task_index import OWN_TASKS
from runners.expand import config_roots
from tests.evals.tiny import byte_tokenizer, config, write_json_lines

spec = importlib.util.spec_from_file_location("medcalc", OWN_TASKS / "medcalc" / "medcalc.py")
medcalc = importlib.util.module_from_spec(spec)
spec.loader.exec_module(medcalc)

CLEARANCE, BODY_MASS, DUE_DATE, GESTATION, SCORE = 2, 6, 13, 69, 25


def row(calculator, truth, lower=None, upper=None, number=1):
    return {
        "Row Number": number,
        "Calculator ID": calculator,
        "Calculator Name": "made up",
        "Category": "lab test",
        "Output Type": "decimal",
        "Note ID": f"made-up-{number}",
        "Note Type": "Synthetic",
        "Patient Note": f"A person of {40 + number} years.",
        "Question": f"What is value {number}?",
        "Relevant Entities": "{'age': [41, 'years']}",
        "Ground Truth Answer": truth,
        "Lower Limit": lower or truth,
        "Upper Limit": upper or truth,
        "Ground Truth Explanation": f"Add it up. The value is {truth}.",
    }


class Answering(LlamaForCausalLM):
    """Generates what `answers` has for a prompt."""

    answers: dict[str, str]

    def generate(self, input_ids, **settings):
        tokenizer = byte_tokenizer()
        prompts = tokenizer.batch_decode(input_ids, skip_special_tokens=True)
        answers = [torch.tensor(tokenizer(self.answers[prompt]).input_ids) for prompt in prompts]
        padded = torch.nn.utils.rnn.pad_sequence(answers, batch_first=True, padding_value=1)
        return torch.cat([input_ids, padded], dim=1)


def measured(tmp_path, monkeypatch, rows, answers):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    write_json_lines(tmp_path / "MedCalc-Bench-v1.0" / "test.jsonl", rows)
    model = Answering(LlamaConfig(**{**config().to_dict(), "max_position_embeddings": 4096}))
    model.answers = {medcalc.prompt(doc): answer for doc, answer in zip(rows, answers, strict=True)}
    return evaluate(
        model, byte_tokenizer(), [TaskRequest("medcalc")], batch_size=4, seed=0, data_root=tmp_path, progress=False
    )


CASES = [
    # Decimals: the limits belong to what is right.
    (row(CLEARANCE, "100", "95", "105"), "100 x 1 = 100.\nAnswer: 100", True),
    (row(CLEARANCE, "100", "95", "105"), "Answer: 95", True),
    (row(CLEARANCE, "100", "95", "105"), "Answer: 105.0", True),
    (row(CLEARANCE, "100", "95", "105"), "Answer: 94.99", False),
    (row(CLEARANCE, "100", "95", "105"), "Answer: 105.01", False),
    # Without limits that hold it, even the true value is wrong: the benchmark has no other rule.
    (row(BODY_MASS, "-20", "-19", "-21"), "Answer: -20", False),
    (row(BODY_MASS, "-20", "-21", "-19"), "Answer: -20 mmol/L", True),
    # Units.
    (row(BODY_MASS, "25.2", "23.94", "26.46"), "Answer: 25.2 kg/m", True),
    (row(BODY_MASS, "8.1", "7.695", "8.505"), "Answer: 8.1 mL/min/1.73 m2", True),
    (row(BODY_MASS, "0.531", "0.50445", "0.55755"), "Answer: 53.1%", True),
    (row(BODY_MASS, "53.1", "50.445", "55.755"), "Answer: 53.1%", False),
    # Integers: after rounding, without tolerance.
    (row(SCORE, "3"), "Answer: 3", True),
    (row(SCORE, "3"), "Answer: 3.4 points", True),
    (row(SCORE, "3"), "Answer: 3 out of 9", True),
    (row(SCORE, "3"), "Answer: 4, 7, 9", True),
    (row(SCORE, "40"), "Answer: 41", False),
    # Dates and times.
    (row(DUE_DATE, "09/05/2014"), "Answer: 9/5/2014", True),
    (row(DUE_DATE, "09/05/2014"), "Answer: 09/06/2014", False),
    (row(DUE_DATE, "02/28/2014"), "Answer: 02/30/2014", False),
    (row(DUE_DATE, "09/05/2014"), "Answer: 2014-09-05", False),
    (row(GESTATION, "('29 weeks', '3 days')"), "Answer: (29 weeks, 3 days)", True),
    (row(GESTATION, "('29 weeks', '3 days')"), 'Answer: ("29", "3")', True),
    (row(GESTATION, "('29 weeks', '3 days')"), "Answer: 29 weeks 4 days", False),
    (row(GESTATION, "('2 weeks', '9 days')"), "Answer: 29 weeks", False),
    # What counts is the last line that says so; nothing there is wrong.
    (row(SCORE, "3"), "Answer: 2\nNo: one more.\n**Answer:** 3", True),
    (row(SCORE, "3"), "The score is 3.", False),
    (row(SCORE, "3"), "Answer: unknown", False),
    (row(SCORE, "3"), "", False),
]


@pytest.mark.parametrize(("doc", "response", "right"), CASES)
def test_judgement_of_an_answer(doc, response, right):
    assert medcalc.judge(doc, [response])["acc"] == right


@pytest.mark.parametrize(
    ("answer", "calculator", "value"),
    [
        ("1.5 to 2.5 mg", CLEARANCE, 2.5),
        ("-3", CLEARANCE, -3.0),
        ("(7 weeks, 0 days)", GESTATION, (7, 0)),
        ("12/31/1999, midnight", DUE_DATE, datetime.date(1999, 12, 31)),
        ("on 12/31/1999", DUE_DATE, None),
        ("none", SCORE, None),
    ],
)
def test_what_is_read_out_of_an_answer(answer, calculator, value):
    assert medcalc.read(answer, calculator) == value


def test_kinds_of_output_do_not_overlap():
    kinds = [medcalc.DATES, medcalc.WEEKS_AND_DAYS, medcalc.INTEGERS]
    assert len(frozenset.union(*kinds)) == sum(map(len, kinds)) == 21


def test_task_scores_its_items(tmp_path, monkeypatch):
    # Own numbers, so that every prompt is another one.
    rows = [{**doc, **row(0, "", number=number), **answer_of(doc)} for number, (doc, _, _) in enumerate(CASES)]
    result = measured(tmp_path, monkeypatch, rows, [response for _, response, _ in CASES])
    rights = [right for _, _, right in CASES]
    assert result.metrics["medcalc"]["acc,none"] == pytest.approx(sum(rights) / len(rights))
    assert [sample["acc"] for sample in result.samples["medcalc"]] == rights
    # Unanswered: two dates that are none, weeks without days, and the last three.
    assert result.metrics["medcalc"]["answered,none"] == pytest.approx(1 - 6 / len(rights))
    assert result.num_fewshot == {"medcalc": 0}


def answer_of(doc):
    return {key: doc[key] for key in ("Calculator ID", "Ground Truth Answer", "Lower Limit", "Upper Limit")}


@pytest.mark.parametrize("name", ["medcalc", "medcalc_label"])
def test_training_asks_as_the_task_does_and_its_targets_are_right(name):
    folder = config_roots([])[0] / "dataset"
    settings = yaml.safe_load((folder / "medcalc.yaml").read_text())
    settings |= yaml.safe_load((folder / f"{name}.yaml").read_text())
    docs = [doc for doc, _, right in CASES if right]
    assert docs and settings["path"] == "ncbi/MedCalc-Bench-v1.0"
    for doc in docs:
        assert settings["prompt"].format_map(doc) == medcalc.prompt(doc)
        target = settings["completion"].format_map(doc)
        assert medcalc.judge(doc, [target]) == {"acc": 1.0, "answered": 1.0}
        assert (doc["Ground Truth Explanation"] in target) == (name == "medcalc")

"""SDFT: what the student writes, what the teacher sees, the divergence between them, whose weights the teacher has."""

import copy
import math

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from methods.batch import Batch, continued
from methods.finetune.sdft import Sdft, SdftConfig, likeliest
from methods.forward import Forward
from tests.methods.mix.fakes import BOS, EOS, TOKENIZER, FakeContext, byte_llama
from tests.models import batches_of

TEXTS = [("copy 12:", " 12"), ("sort 321:", " 123"), ("flip 7:", " 7"), ("name:", " x")]


def prepared(student=None, teacher=None, whose="base", config=(), **settings):
    """A method that has prepared itself, its context, what it reported; `whose`: `method.teacher`."""
    context = FakeContext(byte_llama() if student is None else student, TEXTS, **dict(config))
    context.roles["teacher"] = byte_llama().requires_grad_(False).eval() if teacher is None else teacher
    method = Sdft(SdftConfig(**{"teacher": whose, "max_new_tokens": 5, "ema_rate": 0.25, **settings}))
    method.kind, method.context = context.kind, context
    report = method.prepare(context)
    return method, context, report


def data_batch(context, **layout):
    count = len(context.examples)
    (batch,) = batches_of(context.examples, batch_size=count, micro=count, row_length=120, **layout).of_step(0)
    return batch


def loss_of(method, context, batch):
    return method.loss(Forward(method.kind, context.roles, batch))


def rows(batch):
    """Each sequence's tokens and where its targets are."""
    found = []
    for row in range(len(batch.example_S)):
        here = batch.sequence_BT == row
        found.append((batch.input_ids_BT[here].tolist(), batch.target_mask_BT[here].tolist()))
    return found


# What is sampled ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packing", [False, True])
def test_rollout_is_the_students_own_answers(packing):
    method, context, _ = prepared()
    data = data_batch(context, packing=packing)
    batch = method.rollout(data, step=0)
    (asked,) = context.sampled
    assert asked.role == "policy"
    assert asked.prompts == [TOKENIZER(TEXTS[index][0])["input_ids"] for index in data.example_S.tolist()]
    assert (asked.sampling.temperature, asked.sampling.top_p, asked.sampling.top_k, asked.sampling.eos) == (
        1,
        1,
        0,
        EOS,
    )
    assert torch.equal(batch.example_S, data.example_S) and batch.position_ids_BT is None
    for (tokens, mask), prompt in zip(rows(batch), asked.prompts, strict=True):
        assert tokens[: len(prompt)] == prompt and 1 <= len(tokens) - len(prompt) <= 5
        assert mask == [place >= len(prompt) for place in range(len(tokens))]
    assert method.count(batch) == batch.target_count == sum(sum(mask) for _, mask in rows(batch))


def test_rollout_is_decided_by_seed_step_and_examples():
    method, context, _ = prepared()
    data = data_batch(context)
    first = rows(method.rollout(data, step=3))
    torch.manual_seed(99)
    assert rows(method.rollout(data, step=3)) == first, "a run that continues draws the same"
    assert rows(method.rollout(data, step=4)) != first
    context.seed += 1
    assert rows(method.rollout(data, step=3)) != first


def test_a_row_without_targets_stays_without():
    """A process that has no rows of its own takes part in the sampling, and adds nothing."""
    method, context, _ = prepared()
    data = data_batch(context)
    empty = Batch(data.input_ids_BT, None, torch.zeros_like(data.target_mask_BT), data.sequence_BT, data.example_S)
    batch = method.rollout(empty, step=0)
    assert len(context.sampled[0].prompts) == 4 and batch.target_count == 0
    loss = loss_of(method, context, batch)
    loss.sum.backward()
    assert loss.sum.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in context.model.parameters())


# What the teacher sees ----------------------------------------------------------------------------------------------


def test_teacher_is_shown_the_demonstration_and_judges_the_same_tokens():
    method, context, report = prepared(template="{prompt}\n\nHere: {demonstration}\n{{}}\n")
    batch = method.rollout(data_batch(context), step=0)
    shown = method._as_the_teacher_sees(batch)
    assert torch.equal(shown.targets_K, batch.targets_K) and torch.equal(shown.sequence_K, batch.sequence_K)
    for (tokens, mask), index in zip(rows(shown), batch.example_S.tolist(), strict=True):
        prompt = [token for token, is_target in zip(tokens, mask, strict=True) if not is_target]
        x, y = TEXTS[index]
        assert TOKENIZER.decode(prompt) == f"<bos>{x}\n\nHere: {y}\n{{}}\n" and prompt.count(BOS) == 1
    lengths = [len(TOKENIZER(f"{x}\n\nHere: {y}\n{{}}\n")["input_ids"]) for x, y in TEXTS]
    assert report["sdft/teacher_prompt_tokens"] == np.mean(lengths)


def test_continued_by_hand():
    batch = continued([[5, 6], [7]], [[8], [9, 10, 11]], torch.tensor([4, 2]))
    assert batch.input_ids_BT.tolist() == [[5, 6, 8, 0], [7, 9, 10, 11]]
    assert batch.target_mask_BT.tolist() == [[False, False, True, False], [False, True, True, True]]
    assert batch.sequence_BT.tolist() == [[0, 0, 0, -1], [1, 1, 1, 1]]
    assert batch.example_K.tolist() == [4, 2, 2, 2] and batch.targets_K.tolist() == [8, 9, 10, 11]


# The loss -----------------------------------------------------------------------------------------------------------


def by_hand(method, student, teacher, batch, alpha):
    """One sequence at a time, whole logits, in float64; returns the divergence and the teacher's own loss."""

    def distributions(model, prompt, answer):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0].double()
        return logits[len(prompt) - 1 : -1].softmax(-1)

    def kl(p, q):
        return (p * (p / q).log()).sum().item()

    total, teacher_loss = 0.0, 0.0
    for (tokens, mask), index in zip(rows(batch), batch.example_S.tolist(), strict=True):
        answer = [token for token, is_target in zip(tokens, mask, strict=True) if is_target]
        prompt = tokens[: len(tokens) - len(answer)]
        x, y = TEXTS[index]
        s_TV = distributions(student, prompt, answer)
        t_TV = distributions(teacher, TOKENIZER(f"{x}\n\n{y}")["input_ids"], answer)
        for s, t, token in zip(s_TV, t_TV, answer, strict=True):
            mixture = (1 - alpha) * s + alpha * t
            teacher_loss -= t[token].log().item()
            if alpha in (0.0, 1.0):
                total += kl(t, s) if alpha == 0 else kl(s, t)
            else:
                total += (1 - alpha) * kl(s, mixture) + alpha * kl(t, mixture)
    return total, teacher_loss


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_loss_one_sequence_at_a_time(alpha):
    student, teacher = byte_llama(0).eval(), byte_llama(1).requires_grad_(False).eval()
    method, context, _ = prepared(student, teacher, alpha=alpha)
    batch = method.rollout(data_batch(context), step=0)
    loss = loss_of(method, context, batch)
    expected, teacher_loss = by_hand(method, student, teacher, batch, alpha)
    assert expected > 0.1
    assert loss.sum.item() == pytest.approx(expected, rel=1e-4)
    assert loss.metrics["teacher_loss"].item() == pytest.approx(teacher_loss, rel=1e-4)
    assert not loss.metrics["teacher_loss"].requires_grad


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_zero_with_zero_gradient_where_the_teacher_sees_what_the_student_sees(alpha):
    method, context, _ = prepared(alpha=alpha)
    method._teacher_prompts = [context.examples.prompt(index).tolist() for index in range(len(TEXTS))]
    loss = loss_of(method, context, method.rollout(data_batch(context), step=0))
    loss.sum.backward()
    assert loss.sum.item() == pytest.approx(0, abs=1e-4)
    assert all(parameter.grad.abs().max() < 1e-3 for parameter in context.model.parameters())


def test_no_gradient_reaches_the_teacher():
    """A live teacher has the student's weights, and the gradient of a teacher that is a copy of them."""
    gradients = []
    for whose in ("live", "base"):
        method, context, _ = prepared(teacher=byte_llama(0), whose=whose)
        loss_of(method, context, method.rollout(data_batch(context), step=0)).sum.backward()
        gradients.append([parameter.grad.clone() for parameter in context.model.parameters()])
        assert all(parameter.grad is None for parameter in context.roles["teacher"].parameters())
        assert context.model.training, "the student's mode comes back"
    for live, base in zip(*gradients, strict=True):
        torch.testing.assert_close(live, base, rtol=1e-4, atol=1e-6)
    assert max(gradient.abs().max() for gradient in gradients[0]) > 1e-3


def test_likeliest_by_hand():
    student = torch.tensor([[0.5, 0.1, 0.4], [0.2, 0.7, 0.1]]).log()
    teacher = torch.tensor([[0.1, 0.6, 0.3], [0.3, 0.3, 0.4]]).log()
    s, t = likeliest(student, teacher, 2)
    torch.testing.assert_close(s.exp(), torch.tensor([[5 / 9, 4 / 9], [7 / 9, 2 / 9]]))
    torch.testing.assert_close(t.exp(), torch.tensor([[0.25, 0.75], [0.5, 0.5]]))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_top_k_equals_trl(alpha):
    trl = pytest.importorskip("trl.experimental.sdft.loss_utils")
    student, teacher = byte_llama(0).eval(), byte_llama(1).requires_grad_(False).eval()
    method, context, _ = prepared(student, teacher, alpha=alpha, top_k=7)
    batch = method.rollout(data_batch(context), step=0)
    with torch.no_grad():
        logits = [
            method.kind.target_logits(model, seen)
            for model, seen in ((student, batch), (teacher, method._as_the_teacher_sees(batch)))
        ]
    theirs = trl.compute_topk_self_distillation_loss(
        *logits, distillation_topk=7, distillation_alpha=alpha, distillation_add_tail=False
    )
    assert loss_of(method, context, batch).sum.item() == pytest.approx(theirs.sum().item(), rel=1e-4)


def test_top_k_of_the_whole_vocabulary_changes_nothing():
    found = []
    for top_k in (None, len(TOKENIZER), 10**6):
        method, context, _ = prepared(byte_llama(1), top_k=top_k)
        found.append(loss_of(method, context, method.rollout(data_batch(context), step=0)).sum.item())
    assert found[1] == pytest.approx(found[0], rel=1e-5) and found[2] == found[1]


def test_training_brings_the_student_to_its_teacher():
    """KL(student || teacher) of new samples falls over sixty steps of Adam."""
    method, context, _ = prepared(alpha=1.0)
    data = data_batch(context)
    optimizer = torch.optim.Adam(context.model.parameters(), lr=3e-3)
    means = []
    for step in range(60):
        batch = method.rollout(data, step)
        loss = loss_of(method, context, batch).sum / batch.target_count
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.after_step(step)
        means.append(loss.item())
    assert np.mean(means[-10:]) < 0.5 * np.mean(means[:5])
    base = byte_llama()
    for own, start in zip(context.roles["teacher"].parameters(), base.parameters(), strict=True):
        assert torch.equal(own, start), "teacher=base stays where training started"
    assert method.state_dict() == {}


# The moving average ---------------------------------------------------------------------------------------------------


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_moving_average():
    method, context, _ = prepared(byte_llama(1), teacher=byte_llama(0).requires_grad_(False), whose="ema")
    before, student = weights(context.roles["teacher"]), weights(context.model)
    assert method.state_dict() == {}, "nothing to keep while it is the starting model"
    method.after_step(0)
    for name, value in context.roles["teacher"].state_dict().items():
        torch.testing.assert_close(value, 0.75 * before[name] + 0.25 * student[name])


def test_moving_average_survives_a_restart():
    """Interrupted after two of four steps and continued from the state alone: bit for bit."""

    def train(method, context, steps):
        for step in steps:
            torch.manual_seed(step)
            with torch.no_grad():
                for parameter in context.model.parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))
            method.after_step(step)

    whole, whole_context, _ = prepared(byte_llama(1), whose="ema")
    train(whole, whole_context, range(4))

    first, first_context, _ = prepared(byte_llama(1), whose="ema")
    train(first, first_context, range(2))
    state, student = copy.deepcopy(first.state_dict()), copy.deepcopy(first_context.model)

    context = FakeContext(student, TEXTS)
    context.roles["teacher"] = byte_llama(0).requires_grad_(False)  # a fresh one: the starting model
    second = Sdft(SdftConfig(teacher="ema", ema_rate=0.25, max_new_tokens=5))
    second.kind, second.context = context.kind, context
    second.load_state_dict(state)  # before its models are there, as a run does it
    second.prepare(context)
    assert set(second.state_dict()) == {"teacher"}, "a second interruption at once loses nothing"
    train(second, context, range(2, 4))
    for name, value in whole_context.roles["teacher"].state_dict().items():
        assert torch.equal(context.roles["teacher"].state_dict()[name], value), name


# Mistakes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("config", "message"), [
    ({"engine": {"zero_stage": 3}}, r"^method\.teacher=ema: .*needs engine\.zero_stage 0, 1 or 2, got 3$"),
    ({"adapter": {"_target_": "methods.adapter.lora.Lora"}}, r"^method\.teacher=ema: .*an adapter"),
])  # fmt: skip
def test_where_there_is_no_moving_average(config, message):
    with pytest.raises(ValueError, match=message):
        prepared(whose="ema", config=config)
    prepared(config=config)


def test_longer_than_the_model_takes():
    longest = max(len(TOKENIZER(f"{x}\n\n{y}")["input_ids"]) for x, y in TEXTS)
    prepared(max_new_tokens=256 - longest)
    with pytest.raises(ValueError, match=rf"method\.max_new_tokens={257 - longest}: .* 257 tokens, .* at most 256$"):
        prepared(max_new_tokens=257 - longest)


@pytest.mark.parametrize("template", ["{prompt}", "{prompt}{demonstration}{x}", "{prompt}{demonstration", "plain"])
def test_template(template):
    with pytest.raises(ValueError, match=r"^method\.template="):
        SdftConfig(template=template)


@pytest.mark.parametrize(("key", "value"), [
    ("alpha", 1.1), ("alpha", -0.1), ("ema_rate", 0.0), ("top_k", 0), ("teacher", "frozen"), ("max_new_tokens", 0),
    ("temperature", math.nan), ("temperature", -1.0),
])  # fmt: skip
def test_out_of_range(key, value):
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(SdftConfig).validate_python({key: value})
    assert caught.value.errors()[0]["loc"] == (key,)

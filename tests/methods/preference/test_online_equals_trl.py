"""Loss and gradients of online DPO are those of TRL's OnlineDPOTrainer on the same models, responses and rewards."""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from methods.preference.online_dpo import OnlineDpo, OnlineDpoConfig
from tests.methods.mix.fakes import EOS, PAD, TOKENIZER, byte_llama, encoded
from tests.methods.preference.given import PreferenceContext, forward_of, micro_batches, started

PROMPTS = encoded([("copy 12:", " 1"), ("sort 321:", " 1"), ("flip 7:", " 1")])


def share_of_a(prompts, responses):
    """The share of the letter a."""
    return [response.count("a") / max(len(response), 1) for response in responses]


def written():
    """What stands in for the policy's samples: two responses to each prompt; one has no end, the last two are a tie."""
    texts = [["aab", "b"], ["ba", "aaa"], ["abab", "baab"]]
    first, second, third = ([TOKENIZER(text, add_special_tokens=False)["input_ids"] for text in two] for two in texts)
    return [[[*first[0], EOS], [*first[1], EOS]], [[*second[0], EOS], second[1]], [[*one, EOS] for one in third]]


def left_padded(rows, width):
    ids = torch.full((len(rows), width), PAD)
    for place, row in enumerate(rows):
        ids[place, width - len(row) :] = torch.tensor(row)
    return ids, (ids != PAD).long()


def right_padded(rows):
    ids = torch.full((len(rows), max(map(len, rows))), PAD)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(row)
    return ids, (ids != PAD).long()


@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
@pytest.mark.parametrize("penalty", [None, 0.7])
def test_a_step_of_trl(loss, penalty):
    trainer = pytest.importorskip("trl.experimental.online_dpo.online_dpo_trainer").OnlineDPOTrainer
    context = PreferenceContext(PROMPTS, byte_llama(1), byte_llama(0))
    config = OnlineDpoConfig(
        reward={"function": f"{__name__}.share_of_a"}, loss=loss, ties="first", missing_eos_penalty=penalty, beta=0.3
    )
    method = started(OnlineDpo(config), context)
    (data,) = micro_batches(context)
    responses = written()
    method.responses_to = lambda batch, step: [[list(one) for one in group] for group in responses]
    ours = method.loss(forward_of(method, context, method.rollout(data, 0))).sum / 3
    policy = context.roles["policy"]
    our_gradient = torch.autograd.grad(ours, list(policy.parameters()))

    prompts = [context.examples.prompt(index).tolist() for index in data.example_S.tolist()]
    ids, mask = left_padded(2 * prompts, max(map(len, prompts)))
    answers = [group[side] for side in (0, 1) for group in responses]
    caught = {}
    stub = SimpleNamespace(
        args=SimpleNamespace(
            use_vllm=False, missing_eos_penalty=penalty, loss_type=loss, torch_empty_cache_steps=None, optim="adamw",
            n_gpu=1, gradient_accumulation_steps=1,
        ),
        _generate=lambda *_: (ids, mask, *right_padded(answers), None),
        eos_token_ids=[EOS],
        max_length=256,
        ref_model=context.roles["reference"],
        processing_class=TOKENIZER,
        reward_funcs=[share_of_a],
        _calculate_rewards_from_functions=lambda completions, **_: torch.tensor(share_of_a([], completions)),
        beta=0.3,
        stats=defaultdict(list),
        state=SimpleNamespace(global_step=0),
        accelerator=SimpleNamespace(
            gather_for_metrics=lambda value: value, backward=lambda value, **_: caught.update(loss=value)
        ),
    )  # fmt: skip
    stub._forward = lambda *words: trainer._forward(stub, *words)
    trainer.training_step(stub, policy, {"prompt": [TOKENIZER.decode(prompt) for prompt in prompts]})
    theirs = caught["loss"]
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    for a, b in zip(our_gradient, torch.autograd.grad(theirs, list(policy.parameters())), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    assert max(float(gradient.abs().max()) for gradient in our_gradient) > 1e-3

"""CPO, SimPO and ORPO against TRL's trainers: loss and gradients of a tiny Llama on random pairs.

TRL averages its likelihood terms over the tokens of the micro-batch: they are compared on one pair, where that is the
mean of the response, and apart from the rest on several.
"""

import dataclasses

import numpy as np
import pytest
import torch
from datasets import Dataset

from evals.byte_tokenizer import byte_tokenizer
from methods.examples import Examples
from methods.forward import Forward
from methods.kinds.causal import Causal
from methods.preference.cpo import Cpo, CpoConfig
from methods.preference.orpo import Orpo, OrpoConfig
from methods.preference.simpo import Simpo, SimpoConfig
from tests.models import batches_of, tiny_llama

cpo = pytest.importorskip("trl.experimental.cpo")
orpo = pytest.importorskip("trl.experimental.orpo")

TOKENIZER = byte_tokenizer()
SETTINGS = {
    "use_cpu": True, "report_to": "none", "bf16": False,
    "per_device_train_batch_size": 1, "max_length": 64,
}  # fmt: skip


def llama():
    return tiny_llama(vocab_size=len(TOKENIZER))


def random_pairs(count, seed=0):
    """Prompts of 2 to 4 tokens, responses of 1 to 8."""
    generator = np.random.default_rng(seed)
    sequences, targets = [], []
    for _ in range(count):
        prompt = generator.integers(1, len(TOKENIZER), generator.integers(2, 5)).tolist()
        for _ in range(2):
            sequences.append(prompt + generator.integers(1, len(TOKENIZER), generator.integers(1, 9)).tolist())
            targets.append(len(prompt))
    return Examples.of(sequences, targets, [2] * count, [1.0, 0.0] * count)


def as_trl_has_them(examples):
    """The batch that TRL's collator makes: chosen and rejected sequences, padded, with -100 on what is no response."""
    batch = {}
    for name, first in (("chosen", 0), ("rejected", 1)):
        indices = range(first, len(examples), 2)
        width = max(examples.lengths[index] for index in indices)
        shape = (len(indices), int(width))
        ids, mask, labels = torch.zeros(shape).long(), torch.zeros(shape).long(), torch.full(shape, -100)
        for row, index in enumerate(indices):
            tokens = torch.from_numpy(examples.sequence(index)).long()
            ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
            begin = int(examples.targets[index])
            labels[row, begin : len(tokens)] = tokens[begin:]
        batch |= {f"{name}_input_ids": ids, f"{name}_attention_mask": mask, f"{name}_labels": labels}
    return batch


@pytest.fixture
def theirs(tmp_path):
    """Loss and gradients of one of TRL's trainers on a batch of its own form."""

    def computed(trainer_type, config_type, examples, **settings):
        model = llama()
        trainer = trainer_type(
            model=model,
            args=config_type(output_dir=str(tmp_path), **SETTINGS, **settings),
            train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),
            processing_class=TOKENIZER,
        )
        model.zero_grad()
        loss, _ = trainer.get_batch_loss_metrics(model, as_trl_has_them(examples))
        loss.backward()
        return loss.item(), gradients_of(model)

    return computed


def ours(method, examples, micro=12):
    """The same, with each pair's loss divided by the number of pairs."""
    model = llama()
    total = 0.0
    count = len(examples.groups) - 1
    for batch in batches_of(examples, batch_size=count, micro=micro).of_step(0):
        loss = method.loss(Forward(Causal(), {"policy": model}, batch)).sum / count
        loss.backward()
        total += loss.item()
    return total, gradients_of(model)


def gradients_of(model):
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def assert_equal(found, expected):
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    assert expected[1].norm() > 1e-3
    assert (found[1] - expected[1]).norm() < 1e-5 * expected[1].norm()


class CpoHinge(Cpo):
    """TRL's `hinge`: the same sums, another function of their difference."""

    def losses(self, chosen, rejected):
        return torch.relu(1 - self.config.beta * (chosen.logps - rejected.logps))


CPO = (cpo.CPOTrainer, cpo.CPOConfig)
ORPO = (orpo.ORPOTrainer, orpo.ORPOConfig)


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_cpo_without_likelihood(theirs, beta):
    examples = random_pairs(6)
    expected = theirs(*CPO, examples, loss_type="sigmoid", beta=beta, cpo_alpha=0.0)
    assert_equal(ours(Cpo(CpoConfig(beta=beta, alpha=0.0)), examples), expected)
    assert_equal(ours(Cpo(CpoConfig(beta=beta, alpha=0.0)), examples, micro=2), expected)


def test_hinge_on_the_same_sums(theirs):
    examples = random_pairs(6)
    expected = theirs(*CPO, examples, loss_type="hinge", beta=0.1, cpo_alpha=0.0)
    assert_equal(ours(CpoHinge(CpoConfig(beta=0.1)), examples), expected)


@pytest.mark.parametrize("seed", [0, 1])
def test_cpo_with_the_mean_likelihood_of_one_pair(theirs, seed):
    examples = random_pairs(1, seed)
    expected = theirs(*CPO, examples, loss_type="sigmoid", beta=0.1, cpo_alpha=1.0)
    assert_equal(ours(Cpo(CpoConfig(beta=0.1, nll="mean")), examples), expected)


def test_likelihood_of_several_pairs_is_another_in_trl(theirs):
    """Over all chosen tokens, not over each response's: the same where all have one length."""
    examples = random_pairs(6)
    method = Cpo(CpoConfig(beta=0.1, nll="mean"))
    expected = theirs(*CPO, examples, loss_type="sigmoid", beta=0.1, cpo_alpha=1.0)
    assert ours(method, examples)[0] != pytest.approx(expected[0], rel=1e-3)
    alike = Examples.of([examples.sequence(i)[: examples.targets[i] + 1] for i in range(12)], examples.targets,
                        [2] * 6, examples.labels)  # fmt: skip
    assert_equal(ours(method, alike), theirs(*CPO, alike, loss_type="sigmoid", beta=0.1, cpo_alpha=1.0))


@pytest.mark.parametrize(("beta", "gamma"), [(2.0, 1.0), (2.5, 0.25)])
def test_simpo(theirs, beta, gamma):
    examples = random_pairs(6)
    expected = theirs(*CPO, examples, loss_type="simpo", beta=beta, simpo_gamma=gamma, cpo_alpha=0.0)
    assert_equal(ours(Simpo(SimpoConfig(beta=beta, gamma=gamma)), examples), expected)


class OddsRatio(Orpo):
    """ORPO's second term alone."""

    def losses(self, chosen, rejected):
        return super().losses(chosen, rejected) + chosen.mean_logps


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_odds_ratio_of_orpo(theirs, beta):
    """TRL's loss, less the likelihood over the tokens of prompts and chosen responses."""
    examples = random_pairs(6)
    loss, gradient = theirs(*ORPO, examples, beta=beta)
    first, first_gradient = likelihood_as_in_trl(examples)
    assert_equal(ours(OddsRatio(OrpoConfig(weight=beta)), examples), (loss - first, gradient - first_gradient))


def test_likelihood_of_orpo_without_prompts_of_one_pair(theirs):
    """A prompt of a single token, from which nothing is predicted, leaves the response alone."""
    examples = random_pairs(1, seed=3)
    prompt = int(examples.targets[0]) - 1
    bare = Examples.of([examples.sequence(i)[prompt:] for i in range(2)], [1, 1], [2], examples.labels)
    assert_equal(ours(Orpo(OrpoConfig(weight=0.1)), bare), theirs(*ORPO, bare, beta=0.1))


def likelihood_as_in_trl(examples):
    model = llama()
    batch = as_trl_has_them(examples)
    labels = batch["chosen_input_ids"].masked_fill(batch["chosen_attention_mask"] == 0, -100)
    loss = model(batch["chosen_input_ids"], attention_mask=batch["chosen_attention_mask"], labels=labels).loss
    loss.backward()
    return loss.item(), gradients_of(model)


def test_the_configurations_name_the_same_defaults():
    """What the YAML files say is TRL's."""
    theirs = {field.name: field.default for field in dataclasses.fields(cpo.CPOConfig)}
    assert (theirs["beta"], theirs["cpo_alpha"]) == (CpoConfig().beta, CpoConfig().alpha)
    assert {field.name: field.default for field in dataclasses.fields(orpo.ORPOConfig)}["beta"] == OrpoConfig().weight

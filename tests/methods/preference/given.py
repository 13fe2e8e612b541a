"""Responses with log-probabilities that are given, and a run's context over texts in groups."""

from types import SimpleNamespace

import numpy as np
import torch

from methods.batch import Batch
from methods.examples import Examples
from methods.forward import Forward
from methods.preference.base import Responses
from tests.methods.mix.fakes import EOS, TOKENIZER, FakeContext, byte_llama
from tests.models import batches_of


def given(logps, reference=None, sizes=None, labels=None, dtype=torch.float64):
    """Responses of one token each; `.logps_K` is a leaf, in whose order gradients come. sizes: of the groups."""
    count = len(logps)
    logps_K = torch.tensor(logps, dtype=dtype, requires_grad=True)
    reference_K = torch.zeros(count, dtype=dtype) if reference is None else torch.tensor(reference, dtype=dtype)
    is_target = torch.zeros(count, 2, dtype=torch.bool)
    is_target[:, 1] = True
    batch = Batch(
        torch.ones(count, 2, dtype=torch.long),
        None,
        is_target,
        torch.arange(count).repeat_interleave(2).view(count, 2),
        torch.arange(count),
        torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)) if sizes else None,
        torch.tensor(labels, dtype=torch.float32) if labels is not None else None,
    )
    responses = Responses(SimpleNamespace(batch=batch), reference_K)
    vars(responses)["logps_K"] = logps_K
    return responses


def loss_and_gradient(method, responses):
    """The loss of given responses, and its derivatives by their log-probabilities [S]."""
    loss = method.loss_of(responses).sum
    (gradient,) = torch.autograd.grad(loss, responses.logps_K)
    return loss.item(), gradient.tolist()


def grouped_texts(rows, labels):
    """Examples of (prompt, [responses]), as the runner tokenises them."""
    sequences = [[*TOKENIZER(prompt + response)["input_ids"], EOS] for prompt, written in rows for response in written]
    targets = [len(TOKENIZER(prompt)["input_ids"]) for prompt, written in rows for _ in written]
    return Examples.of(sequences, targets, [len(written) for _, written in rows], labels)


class PreferenceContext(FakeContext):
    """A run over groups of responses; the reference is another tiny model than the policy."""

    def __init__(self, examples, policy=None, reference=None, written=None, **config):
        training = {"micro_batch_size": 8, "packing": False, "batch_size": 8, "max_length": None}
        policy = byte_llama(0) if policy is None else policy
        super().__init__(policy, written=written, **{"training": training, **config})
        self.examples = examples
        reference = byte_llama(1) if reference is None else reference
        self.roles["reference"] = reference.requires_grad_(False).eval()

    def measure(self, what, values, per="example", role=None):
        """All target tokens under the reference."""
        assert per == "token" and role == "reference"
        count = len(self.examples)
        found = np.concatenate([np.zeros(0), *[self.of(values, index) for index in range(count)]])
        return found

    def of(self, values, index):
        """One sequence at a time."""
        one = Examples.of([self.examples.sequence(index)], [int(self.examples.targets[index])])
        (batch,) = batches_of(one, batch_size=1, micro=1).of_step(0)
        with torch.no_grad():
            return values(self.roles["reference"], batch).double().numpy()


def started(method, context):
    """A method as a run has it before its first step: its data arranged, its preparation done."""
    method.kind, method.context = context.kind, context
    context.examples = method.arrange(context, context.examples)
    method.prepare(context)
    return method


def micro_batches(context, micro=None, **layout):
    """The micro-batches of the first step, all examples in one; `micro`: examples of each."""
    count = len(context.examples.groups) - 1
    settings = {"batch_size": count, "micro": micro or count, "row_length": 240, **layout}
    return batches_of(context.examples, **settings).of_step(0)


def forward_of(method, context, batch):
    """What the loop gives to the method's loss."""
    return Forward(method.kind, context.roles, batch)


def logps_by_hand(context, prompt, response, role="policy"):
    """log p(response | prompt) of a role's model: one sequence, whole logits, fp64."""
    with torch.no_grad():
        logits = context.roles[role](input_ids=torch.tensor([[*prompt, *response]])).logits[0].double()
    logps = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    return float(logps[torch.arange(len(response)), torch.tensor(response)].sum())

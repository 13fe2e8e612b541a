"""A run's context of one process for methods that write while they train: a tiny model, problems, rewards."""

from methods.examples import Examples
from methods.forward import Forward
from methods.generation import write
from tests.methods.mix.fakes import EOS, TOKENIZER, FakeContext, byte_llama
from tests.models import batches_of

PROBLEMS = [("copy 12:", "12"), ("sort 321:", "123"), ("flip 7:", "7")]


def early_letters(prompts, responses):
    """A reward that a random model differs in: the share of its letters that come early."""
    return [sum(ord(letter) < 128 for letter in response) / max(len(response), 1) for response in responses]


def nothing(prompts, responses):
    """All responses are worth the same."""
    return [0.5] * len(responses)


class RlContext(FakeContext):
    """Problems and a tiny policy; the reference is another model than the policy."""

    rank = 0

    def __init__(self, problems=PROBLEMS, policy=None, reference=None, **config):
        training = {"micro_batch_size": None, "batch_size": len(problems), "packing": False, "max_length": None}
        dataset = {"add_eos": True, "loss_on": "completion", "chat": False, "layout": "columns"}
        policy = byte_llama(0) if policy is None else policy
        super().__init__(policy, **{"training": training, "dataset": dataset, **config})
        self.texts = self.plain_texts = list(problems)
        prompts = [TOKENIZER(prompt)["input_ids"] for prompt, _ in problems]
        self.examples = Examples.of([[*prompt, EOS] for prompt in prompts], [len(prompt) for prompt in prompts])
        self.roles["reference"] = (byte_llama(1) if reference is None else reference).requires_grad_(False).eval()
        self.roles["policy"] = policy
        self.written = []

    def write(self, role, prompts, sampling, seed):
        """By the role's model; what was asked is noted."""
        self.written.append([list(prompt) for prompt in prompts])
        return write(self.roles[role], prompts, sampling, seed, logps=True, tokenizer=TOKENIZER)

    def gathered(self, value):
        """Of one process."""
        return [value]

    def batches(self, micro=None):
        """All problems, as one global batch."""
        count = len(self.examples)
        return batches_of(self.examples, batch_size=count, micro=micro or count, row_length=240).of_step(0)


def config_of(config_type, **settings):
    """Settings of a method, small; one optimizer step a turn."""
    small = {"rewards": [{"function": "tests.methods.rl.running.early_letters"}], "group_size": 4, "max_new_tokens": 6}
    return config_type(**{**small, "beta": 0.0, "minibatches": 1, "temperature": 1.0, **settings})


def started(method, context):
    """A method as a run has it before its first step."""
    method.kind, method.context = context.kind, context
    for role in context.roles.values():
        method.shape(role)
    method.prepare(context)
    return method


def step(method, context, turn=0, micro=None):
    """Loss of the first optimizer step of a turn divided by its units, and the policy's gradients."""
    policy = context.roles["policy"]
    policy.zero_grad()
    (batches, *_) = method.rollouts(context.batches(micro), turn)
    losses = [method.loss(Forward(method.kind, context.roles, batch)) for batch in batches]
    count = max(sum(method.count(batch) for batch in batches), 1)
    total = sum(loss.sum for loss in losses) / count
    total.backward()
    return total.item(), {name: weight.grad.clone() for name, weight in policy.named_parameters()}, losses

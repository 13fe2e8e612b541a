"""Murphy: credit, pruning, the tree, and GRPO as its limit."""

import itertools

import pytest
import torch

from evals.rewards.graded import Graded
from methods.rl.advantages import normalised
from methods.rl.grpo import Grpo, GrpoConfig
from methods.rl.murphy import Murphy, MurphyConfig, between_groups, carried_back, inside_group
from methods.rl.turns import Attempt, Dialogue, check_template
from tests.methods.mix.fakes import TOKENIZER
from tests.methods.rl.running import RlContext, config_of, started, step

# The first turn, and the answers to the feedback on its second, third and fourth response.
REWARD = torch.tensor([1, 0.5, 0, 0, 1, 0.5, 0.5, 0, 0, 0, 0, 0, 0, 1, 0, 0], dtype=torch.float64)
PARENT = torch.tensor([-1] * 4 + [1] * 4 + [2] * 4 + [3] * 4)
TURN = torch.tensor([0] * 4 + [1] * 12)
GROUP = torch.arange(4).repeat_interleave(4)


def close(found, expected):
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)


def carried(**settings):
    return carried_back(REWARD, PARENT, TURN, 2, **settings)


@pytest.mark.parametrize(
    ("settings", "returns", "advantages"),
    [
        ({"credit": "none"}, [1, 0.5, 0, 0], [1.305310, 0.261062, -0.783186, -0.783186]),
        ({"credit": "max"}, [1, 1, 0, 1], [0.499900, 0.499900, -1.499700, 0.499900]),
        ({"credit": "mean"}, [1, 0.5, 0, 0.125], [1.321362, 0.208636, -0.904090, -0.625908]),
        ({"credit": "mean", "gamma": 0.9}, [1, 0.475, 0, 0.1125], [1.339162, 0.173467, -0.881210, -0.631419]),
        ({"credit": "mean", "gamma": 0.9, "normalise": False}, [1, 0.95, 0, 0.225], None),
    ],
)
def test_credit_by_hand(settings, returns, advantages):
    found = carried(**settings)
    close(found[:4], returns)
    assert torch.equal(found[4:], REWARD[4:]), "leaves keep their own"
    of_all = normalised(found, GROUP)
    if advantages:
        close(of_all[:4], advantages)
    close(of_all[4:8], [1.224445, 0, 0, -1.224445])
    close(of_all[8:12], [0, 0, 0, 0])
    close(of_all[12:], [-0.499900, 1.499700, -0.499900, -0.499900])


def test_no_credit_without_gamma():
    assert torch.equal(carried(credit="max", gamma=0.0), REWARD)
    assert torch.equal(carried(credit="mean", gamma=0.0, normalise=False), REWARD)


def test_rules_on_random_trees():
    """max is idempotent, monotone and never below the own reward; both stay in [0, 1]; equal to recursion."""
    generator = torch.Generator().manual_seed(0)
    parent, turn = [-1] * 3, [0] * 3
    for depth, count in ((1, 5), (2, 6)):
        above = [place for place, at in enumerate(turn) if at == depth - 1]
        parent += [above[int(torch.randint(len(above), (1,), generator=generator))] for _ in range(count)]
        turn += [depth] * count
    parent, turn = torch.tensor(parent), torch.tensor(turn)
    reward = torch.rand(14, generator=generator).double()

    def by_recursion(place, rule, gamma):
        children = [by_recursion(child, rule, gamma) for child in range(14) if parent[child] == place]
        if not children:
            return float(reward[place])
        if rule == "max":
            return max(float(reward[place]), gamma * max(children))
        return (float(reward[place]) + gamma * sum(children) / len(children)) / (3 - int(turn[place]))

    for rule, gamma in itertools.product(("max", "mean"), (1.0, 0.9)):
        found = carried_back(reward, parent, turn, 3, rule, gamma)
        close(found, [by_recursion(place, rule, gamma) for place in range(14)])
        assert ((found >= 0) & (found <= 1)).all()
    once = carried_back(reward, parent, turn, 3, "max")
    assert torch.equal(carried_back(once, parent, turn, 3, "max"), once)
    assert (once >= reward).all()
    higher = reward.clone()
    higher[10] += 0.5
    assert (carried_back(higher, parent, turn, 3, "max") >= once).all()


def test_pruning_by_hand():
    stds = torch.tensor([0.408248, 0.0, 0.5])
    assert between_groups(stds, 1) == [2]
    assert between_groups(stds, 2) == [0, 2]
    assert between_groups(stds, 3) == between_groups(stds, 9) == [0, 1, 2]
    assert inside_group(torch.tensor([1, 0.5, 0.5, 0]), 2) == [0, 3]
    values = torch.tensor([0.9, 0.8, 0.1, 0.5, 0.0, 0.3])
    assert inside_group(values, 4) == [0, 1, 2, 4]
    best = max(itertools.combinations(range(6), 4), key=lambda places: float(values[list(places)].var()))
    assert inside_group(values, 4) == list(best)
    assert inside_group(values, 6) == list(range(6))


def test_dialogues():
    attempts = [Attempt("1x+7", "!3:1/A;"), Attempt("2x+5", "!4:0/2;")]
    text = Dialogue(template="{prompt}{attempt}{feedback}", chat=False, history="chain")
    found = TOKENIZER.decode(text.prompt(TOKENIZER, "f(2)=9;", attempts), skip_special_tokens=True)
    assert found == "f(2)=9;1x+7!3:1/A;2x+5!4:0/2;"
    last = Dialogue(template="{prompt}{attempt}{feedback}", chat=False)
    assert (
        TOKENIZER.decode(last.prompt(TOKENIZER, "f(2)=9;", attempts), skip_special_tokens=True) == "f(2)=9;2x+5!4:0/2;"
    )
    for template, chat in (("{prompt}{feedback}", False), ("{attempt} {feedback}", True), ("{other}{feedback}", True)):
        with pytest.raises(ValueError, match=r"key=.*: "):
            check_template(template, chat, "key")
    check_template("{feedback} again", True, "key")


# The method ----------------------------------------------------------------------------------------------------------


def by_length(prompts, responses):
    """Solved by responses with few letters that can be read; the feedback says how many there are."""
    counts = [sum(letter.isalnum() for letter in response) for response in responses]
    return [Graded(max(0.0, 1 - 0.5 * count), f"{count} letters") for count in counts]


def never(prompts, responses):
    return [Graded(0.0, "wrong")] * len(responses)


def always(prompts, responses):
    return [1.0] * len(responses)


def murphy(reward="by_length", **settings):
    rewards = [{"function": f"tests.methods.rl.test_murphy.{reward}"}]
    return Murphy(config_of(MurphyConfig, rewards=rewards, **settings))


def tree_of(method, context):
    return method.episodes(context.batches(), 0)


@pytest.mark.parametrize("settings", [{"turns": 1}, {"turns": 1, "prune": "intra"}, {"turns": 2, "reward": "always"}])
def test_one_turn_is_grpo(settings):
    """Loss and gradients, bit for bit; so are they where all is solved at once."""
    reward = settings.get("reward", "by_length")
    rewards = [{"function": f"tests.methods.rl.test_murphy.{reward}"}]
    own = started(murphy(**settings), context := RlContext())
    loss, gradients, _ = step(own, context)
    other = started(Grpo(config_of(GrpoConfig, rewards=rewards)), context := RlContext())
    expected, expected_gradients, _ = step(other, context)
    assert loss == expected
    assert all(torch.equal(gradients[name], expected_gradients[name]) for name in gradients)
    assert reward == "always" or any(gradient.any() for gradient in gradients.values())


def test_the_tree():
    """Only what is not solved is continued; prompts hold attempt and feedback; groups keep apart."""
    method, context = murphy(turns=3, group_size=3), RlContext()
    tree = tree_of(started(method, context), context)
    for turn in (1, 2):
        before = (tree.turn_N == turn - 1).nonzero().squeeze(-1)
        unsolved = [int(place) for place in before if tree.reward_N[place] < 1]
        children = (tree.turn_N == turn).nonzero().squeeze(-1).tolist()
        assert tree.parent_N[children].tolist() == [place for place in unsolved for _ in range(3)]
        for child in children:
            parent = int(tree.parent_N[child])
            text = TOKENIZER.decode(tree.prompts[child], skip_special_tokens=True)
            attempt = TOKENIZER.decode(tree.written[parent].tokens, skip_special_tokens=True)
            problem = context.texts[int(tree.example_N[child])][0]
            assert text == f"{problem}{attempt}\n{tree.feedback[parent]}\n"
            assert tree.example_N[child] == tree.example_N[parent]
    counts = tree.group_N.bincount()
    assert (counts == 3).all()
    assert len({(int(g), int(p)) for g, p in zip(tree.group_N, tree.parent_N, strict=True)}) == len(counts)


def test_nothing_to_learn_from_where_all_fails():
    method, context = murphy("never", turns=2), RlContext()
    _, gradients, losses = step(started(method, context), context)
    assert all((gradient == 0).all() for gradient in gradients.values())
    assert sum(float(loss.means["ended"][1]) for loss in losses) == 3 * 4 + 12 * 4, "every node is trained on"


def test_budgets_as_large_as_the_tree_prune_nothing():
    plain = step(started(murphy(turns=2), context := RlContext()), context)[1]
    for prune in ("inter", "intra"):
        found = step(started(murphy(turns=2, prune=prune, budget=12), context := RlContext()), context)[1]
        assert all(torch.equal(plain[name], found[name]) for name in plain)


def test_pruning_leaves_the_first_turn_and_the_budget():
    method, context = murphy(turns=2, prune="inter", budget=1), RlContext()
    tree = tree_of(started(method, context), context)
    kept = tree.at(method._kept(tree))
    assert (kept.turn_N == 0).sum() == 12
    assert (kept.turn_N == 1).sum() <= 3 * 4
    inside = murphy(turns=2, prune="intra", budget=2)
    tree = tree_of(started(inside, context), context)
    assert (tree.group_N[inside._kept(tree)].bincount() == 2).all()


def test_statistics_of_what_is_kept():
    """Rewards 1, 1/2, 1/2, 0 of which 1 and 0 are kept: advantages of two."""
    method, context = murphy(turns=2, prune="intra", budget=2, statistics="kept"), RlContext()
    tree = tree_of(started(method, context), context)
    rewards = torch.tensor([1, 0.5, 0.5, 0], dtype=torch.float64)
    first = tree.at(range(4))
    first = type(first)(**{**vars(first), "reward_N": rewards})
    found = method.advantages(first)
    close(found[[0, 3]], [0.707007, -0.707007])


def test_how_many_attempts_are_continued():
    method, context = murphy("never", turns=2, expand=1), RlContext()
    tree = tree_of(started(method, context), context)
    assert (tree.turn_N == 1).sum() == 3 * 4
    assert tree.parent_N[tree.turn_N == 1].unique().tolist() == [0, 4, 8]


@pytest.mark.parametrize(
    ("settings", "told"),
    [({"dynamic_sampling": 2}, "dynamic_sampling=2"), ({"baseline": "batch"}, "baseline=batch")],
)
def test_settings_that_a_tree_cannot_have(settings, told):
    with pytest.raises(ValueError, match=told):
        config_of(MurphyConfig, **settings)


def test_a_template_of_other_fields_is_told():
    with pytest.raises(ValueError, match=r"method\.feedback_template"):
        started(murphy(feedback_template="{feedback}"), RlContext())

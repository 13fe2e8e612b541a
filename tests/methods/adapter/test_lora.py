"""LoRA: no change at the start, the merged model's equality, the rank of the change, what is trained."""

import pytest
import torch
from torch import nn

from methods.adapter.lora import Lora, LoraConfig
from methods.kinds.causal import Causal
from tests.models import batches_of, random_examples, tiny_llama

IDS = torch.tensor([[5, 9, 11, 2, 30, 7], [3, 3, 8, 1, 4, 29]])


def adapted(model=None, seed=0, **settings):
    lora = Lora(LoraConfig(**{"rank": 3, "alpha": 6.0, **settings}))
    return lora, lora.apply(tiny_llama() if model is None else model, seed)


def logits(model):
    model.eval()
    with torch.no_grad():
        return model(input_ids=IDS).logits


def trained(model, steps=20):
    """A few steps of SFT by the adapter's own parameters."""
    (batch,) = batches_of(random_examples()).of_step(0)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for _ in range(steps):
        loss = -Causal().token_logps(model, batch).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    return model


def test_identity_at_the_start():
    """B = 0: bitwise the base model's output."""
    _, model = adapted()
    assert torch.equal(logits(model), logits(tiny_llama()))


def test_only_adapters_are_trained():
    base = {name: value.clone() for name, value in tiny_llama().state_dict().items()}
    _, model = adapted()
    open_ones = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert open_ones and all("lora_A" in name or "lora_B" in name for name in open_ones)
    # q, k, v, o, gate, up, down in two layers, two factors each
    assert len(open_ones) == 2 * 7 * 2
    trained(model)
    inner = {name.replace(".base_layer", ""): value for name, value in model.base_model.model.state_dict().items()}
    assert base.keys() <= inner.keys()
    for name, value in base.items():
        assert torch.equal(inner[name], value), name


def test_merged_equals_adapted():
    lora, model = adapted()
    trained(model)
    expected = logits(model)
    assert (expected - logits(tiny_llama())).abs().max() > 0.05
    merged = lora.merge(model)
    torch.testing.assert_close(logits(merged), expected, rtol=1e-5, atol=1e-5)
    assert merged.state_dict().keys() == tiny_llama().state_dict().keys(), "a plain model"


@pytest.mark.parametrize("rank", [1, 3])
def test_rank_of_the_change(rank):
    lora, model = adapted(rank=rank)
    merged = lora.merge(trained(model)).state_dict()
    changed = 0
    for name, before in tiny_llama().state_dict().items():
        update = merged[name] - before
        if name.endswith("_proj.weight"):
            values = torch.linalg.svdvals(update.double())
            assert values[0] > 1e-3 and (values[rank:] < 1e-6).all(), name
            changed += 1
        else:
            assert not update.any(), name
    assert changed == 2 * 7


def test_scale_is_alpha_over_rank():
    """The same factors with twice the alpha are twice the change."""
    changes = []
    for alpha in (3.0, 6.0):
        lora, model = adapted(alpha=alpha)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator))
        merged = lora.merge(model).state_dict()
        name = "model.layers.0.self_attn.q_proj.weight"
        changes.append(merged[name] - tiny_llama().state_dict()[name])
    torch.testing.assert_close(changes[1], 2 * changes[0], rtol=1e-4, atol=1e-5)


def test_start_is_decided_by_the_seed_alone():
    def factors(seed, elsewhere):
        torch.manual_seed(elsewhere)
        _, model = adapted(seed=seed)
        return [p.detach() for name, p in model.named_parameters() if "lora_A" in name]

    def same(a, b):
        return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))

    assert same(factors(0, 1), factors(0, 2))
    assert not same(factors(0, 1), factors(1, 1))
    model = tiny_llama()
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    adapted(model)
    assert torch.equal(torch.random.get_rng_state(), before), "nothing else is drawn"


def test_chosen_modules_alone():
    _, model = adapted(target_modules=["q_proj", "down_proj"])
    names = {name for name, module in model.named_modules() if hasattr(module, "lora_A")}
    assert {name.rpartition(".")[2] for name in names} == {"q_proj", "down_proj"} and len(names) == 4


@pytest.mark.parametrize("target", ["query", "layers", "embed_tokens", ""])
def test_unknown_module(target):
    """Also one that is there and not linear."""
    with pytest.raises(
        ValueError, match=rf"^adapter\.target_modules={target}: matches no module of the model; it has "
    ) as caught:
        adapted(target_modules=["q_proj", target])
    assert "q_proj" in str(caught.value) and "lm_head" in str(caught.value)


def test_token_logps_of_an_adapted_model():
    """The adapter of the kind of model reaches the output layer through peft's wrapper."""
    _, model = adapted()
    (batch,) = batches_of(random_examples()).of_step(0)
    torch.testing.assert_close(Causal().token_logps(model, batch), Causal().token_logps(tiny_llama(), batch))
    assert isinstance(model, nn.Module)

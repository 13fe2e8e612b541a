"""Per-token quantities of two distributions: the same in chunks, and no more than a chunk of them held."""

import pytest
import torch

from methods.divergences import kl
from methods.token_divergences import per_token

K, V = 11, 13


def inputs(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    policy_KV, reference_KV = (2 * torch.randn(K, V, generator=generator) for _ in range(2))
    return policy_KV.to(dtype).requires_grad_(), reference_KV.to(dtype), torch.randint(V, (K,), generator=generator)


def forward_kl(policy_CV, reference_CV):
    return kl(reference_CV, policy_CV)


def weighted_sum(found):
    """A number to which every quantity of every position counts differently."""
    weights = torch.arange(1.0, 3 * K + 1).reshape(3, K).sin()
    return (weights * torch.stack(tuple(found))).sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk", [None, 1, 3, 11, 100])
def test_equals_the_whole_table(chunk, dtype):
    policy_KV, reference_KV, targets_K = inputs(dtype)
    found = per_token(policy_KV, reference_KV, targets_K, forward_kl, chunk)
    policy, reference = (table.detach().float().requires_grad_() for table in (policy_KV, reference_KV))
    every = torch.arange(K)
    p, q = reference.log_softmax(-1), policy.log_softmax(-1)
    expected = (q[every, targets_K], p[every, targets_K], (p.exp() * (p - q)).sum(-1))
    for got, want in zip(found, expected, strict=True):
        assert got.dtype == torch.float32 and got.shape == (K,)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(weighted_sum(found), policy_KV)
    (wanted,) = torch.autograd.grad(weighted_sum(expected), policy)
    assert gradient.dtype == dtype and wanted.abs().max() > 0.1
    rounding = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 1e-3}
    torch.testing.assert_close(gradient.float(), wanted, **rounding)


def test_nothing_of_the_size_of_the_vocabulary_is_kept_for_the_backward_pass():
    def kept(chunk):
        """Numbers that autograd holds besides the logits themselves."""
        policy_KV, reference_KV, targets_K = inputs()
        held = {}

        def note(tensor):
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            found = per_token(policy_KV, reference_KV, targets_K, forward_kl, chunk)
        own = {tensor.untyped_storage().data_ptr() for tensor in (policy_KV, reference_KV, targets_K)}
        assert weighted_sum(found).isfinite()
        return sum(size for pointer, size in held.items() if pointer not in own)

    assert kept(None) > 2 * K * V
    assert kept(3) < V


def test_no_more_than_a_chunk_is_compared_at_a_time():
    policy_KV, reference_KV, targets_K = inputs()
    shapes = []

    def divergence(policy_CV, reference_CV):
        shapes.append(policy_CV.shape)
        return forward_kl(policy_CV, reference_CV)

    found = per_token(policy_KV, reference_KV, targets_K, divergence, 4)
    assert shapes == [(4, V), (4, V), (3, V)]
    weighted_sum(found).backward()
    assert len(shapes) == 6 and max(rows for rows, _ in shapes) == 4
    shapes.clear()
    with torch.no_grad():
        per_token(policy_KV, reference_KV, targets_K, divergence, 4)
    assert shapes == [(4, V), (4, V), (3, V)]


def test_without_positions():
    policy_KV, reference_KV, targets_K = inputs()
    found = per_token(policy_KV[:0], reference_KV[:0], targets_K[:0], forward_kl, 4)
    assert [len(values) for values in found] == [0, 0, 0]

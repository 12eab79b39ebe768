"""The losses' own gradients against those of autograd."""

from __future__ import annotations

import torch

from editcl.editing.objective import divergence, log_prob


def logits(seed: int) -> torch.Tensor:
    return 3 * torch.randn(5, 40, generator=torch.Generator().manual_seed(seed))


def gradient_of(found: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    weights = torch.arange(1.0, 6.0)
    return torch.autograd.grad((weights * found).sum(), x)[0]


def test_the_log_probability_of_a_token() -> None:
    x, token = logits(0).requires_grad_(True), torch.tensor([3, 0, 39, 3, 7])
    ours, plain = log_prob(x, token), x.log_softmax(-1).gather(-1, token[:, None])[:, 0]
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(gradient_of(ours, x), gradient_of(plain, x))


def test_the_divergence() -> None:
    x, held = logits(1).requires_grad_(True), logits(2).log_softmax(-1)
    now = x.log_softmax(-1)
    ours, plain = divergence(x, held), (now.exp() * (now - held)).sum(-1)
    torch.testing.assert_close(ours, plain)
    gradient = gradient_of(ours, x)
    torch.testing.assert_close(gradient, gradient_of(plain, x))
    assert float(divergence(held, held).abs().max()) < 1e-6
    assert float(gradient.abs().max()) > 1e-2


def test_sixteen_bits_are_taken_as_float32() -> None:
    x = logits(3).bfloat16().requires_grad_(True)
    found = log_prob(x, torch.tensor([1, 2, 3, 4, 5]))
    assert found.dtype == torch.float32
    assert gradient_of(found, x).dtype == torch.bfloat16

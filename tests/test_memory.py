"""The memory channel whose weights are those of Bayes' rule."""

import pytest
import torch

from np_trl.models.memory import PosteriorMemory, posterior_weights


def choices(users: int = 4, pairs: int = 7, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Margins, kernel and a mask with every number of pairs from 0 on."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(users, pairs, 5, generator=generator) * scale
    margins = torch.randn(users, pairs, generator=generator) * scale
    mask = torch.arange(pairs) < 2 * torch.arange(users).unsqueeze(1)
    return margins, features @ features.transpose(1, 2) * mask.unsqueeze(1) * mask.unsqueeze(2), mask


@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
def test_weights_are_those_of_the_mode(scale):
    margins, kernel, mask = choices(scale=scale)
    weights = posterior_weights(margins, kernel, mask, num_steps=60)
    user_part = (kernel @ weights.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(weights, torch.sigmoid(-(margins + user_part)) * mask, atol=2e-3, rtol=0)


def test_the_usual_number_of_steps_is_enough():
    margins, kernel, mask = choices()
    torch.testing.assert_close(
        posterior_weights(margins, kernel, mask),
        posterior_weights(margins, kernel, mask, num_steps=200),
        atol=1e-3,
        rtol=0,
    )


def test_gradients_are_those_of_the_mode():
    margins, kernel, mask = choices()
    margins.requires_grad_()
    direction = torch.randn(margins.shape, generator=torch.Generator().manual_seed(1))

    def value(shift: float) -> torch.Tensor:
        return posterior_weights(margins + shift * direction, kernel, mask, num_steps=100).square().sum()

    (gradient,) = torch.autograd.grad(value(0.0), margins)
    numeric = (value(1e-2) - value(-1e-2)) / 2e-2
    assert (gradient * direction).sum().item() == pytest.approx(numeric.item(), rel=1e-2)
    assert gradient.isfinite().all() and not gradient[~mask].any()


def test_the_gradient_of_the_prior_is_that_of_the_mode():
    margins, kernel, mask = choices()
    scale = torch.ones((), requires_grad=True)

    def value(scale) -> torch.Tensor:
        return posterior_weights(margins, scale * kernel, mask, num_steps=100).square().sum()

    (gradient,) = torch.autograd.grad(value(scale), scale)
    numeric = (value(1.01) - value(0.99)) / 2e-2
    assert gradient.item() == pytest.approx(numeric.item(), rel=1e-2)


def test_strong_and_contradictory_choices_do_no_harm():
    kernel = torch.full((1, 2, 2), 400.0) * torch.tensor([[1.0, -1.0], [-1.0, 1.0]])  # the same pair, both ways
    for margins in ([[0.0, 0.0]], [[-30.0, 30.0]], [[20.0, -20.0]]):
        weights = posterior_weights(torch.tensor(margins), kernel, torch.ones(1, 2))
        assert weights.isfinite().all() and (weights > -0.01).all() and (weights < 1.01).all()
    torch.testing.assert_close(
        posterior_weights(torch.zeros(1, 2), kernel, torch.ones(1, 2)), torch.full((1, 2), 0.5), atol=1e-3, rtol=0
    )


def test_a_choice_that_another_explains_weighs_less():
    torch.manual_seed(0)
    memory = PosteriorMemory(embed_size=3, hidden_size=4, memory_size=3)
    memory.reset_parameters()
    torch.nn.init.eye_(memory.code.weight)
    one, other = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]]), torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    options = torch.stack([one, one, one, other])  # (4, 2, 3)
    recalled = memory(options, torch.zeros(1, 4, 2, 4), None, torch.ones(1, 4, 1, dtype=torch.bool))[0]
    assert 1 < recalled[0] / recalled[1] < 3 and recalled[2] == 0


def test_a_strong_memory_survives_autocast():
    """In bfloat16 the kernel of alike pairs would not be positive definite."""
    torch.manual_seed(0)
    memory = PosteriorMemory(embed_size=512, hidden_size=4, memory_size=128)
    memory.reset_parameters()
    torch.nn.init.constant_(memory.log_variance, 3.0)
    options = torch.randn(8, 20, 2, 3) @ torch.randn(3, 512) + 0.1 * torch.randn(8, 20, 2, 512)
    arguments = options.flatten(0, 1), torch.zeros(8, 20, 2, 4), None, torch.ones(8, 20, 1, dtype=torch.bool)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        recalled = memory(*arguments)
    expected = memory(*arguments)
    assert recalled.isfinite().all()
    assert torch.nn.functional.cosine_similarity(recalled.float(), expected).min() > 0.95


def test_the_mode_is_found_in_float32_under_autocast():
    margins, kernel, mask = choices()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        weights = posterior_weights(margins, kernel, mask)
    torch.testing.assert_close(weights, posterior_weights(margins, kernel, mask))


@pytest.mark.parametrize("scale", [1e4, 1e8, 1e15, 1e18])
def test_the_equations_of_any_finite_choices_are_solved(scale):
    torch.manual_seed(0)
    memory = PosteriorMemory(6, 4, 8)
    memory.reset_parameters()
    torch.nn.init.normal_(memory.population.weight)
    hidden, mask = torch.randn(1, 300, 2, 4), torch.ones(1, 300, 1, dtype=torch.bool)
    for options in (torch.randn(300, 2, 6), torch.randn(1, 2, 6).expand(300, 2, 6)):
        options = (options * scale).requires_grad_()
        pooled = memory(options, hidden, None, mask)
        pooled.sum().backward()
        assert pooled.isfinite().all() and options.grad.isfinite().all()

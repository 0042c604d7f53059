import pytest
import torch

from np_trl.models import ContextEncoder, ContextEncoderConfig
from np_trl.models.pooling import PosteriorPooling

from .testing_utils import CONTEXT_CONFIG, toy_context


def tiny_context_encoder(**kwargs) -> ContextEncoder:
    torch.manual_seed(0)
    return ContextEncoder(ContextEncoderConfig(**{"embed_size": 6, **CONTEXT_CONFIG, **kwargs})).eval()


VARIANTS = [
    {},
    {"pooling": "mean"},
    {"pooling": "attention"},
    {"pooling": "posterior", "memory_size": 0},
    {"memory_size": 0},
    {"memory_weights": "gate"},
    {"latent_distribution": "gaussian"},
    # the paper's eq. 5 and eq. 21
    {"pair_features": "concatenation", "pooling": "mean", "linear_skip": False, "memory_size": 0},
    {"pair_features": "concatenation", "pooling": "attention", "linear_skip": False, "memory_size": 0},
]


@pytest.mark.parametrize("variant", VARIANTS)
def test_latents_ignore_the_order_of_the_context_set(variant):
    encoder, (embeds, _) = tiny_context_encoder(**variant), toy_context(users=3, pairs=5)
    mask, order = torch.ones(3, 5, dtype=torch.bool), torch.randperm(5)
    torch.testing.assert_close(encoder(embeds, mask), encoder(embeds[:, order], mask[:, order]))


@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_changes_no_latent(variant):
    encoder, (embeds, mask) = tiny_context_encoder(**variant), toy_context(users=4, pairs=5)
    latents = encoder(embeds, mask)
    assert latents.isfinite().all()
    torch.testing.assert_close(encoder(embeds.masked_fill(~mask[..., None, None], 99.0), mask), latents)
    for user in range(1, 4):  # user i has i pairs
        alone = encoder(embeds[user : user + 1, :user], torch.ones(1, user, dtype=torch.bool))
        torch.testing.assert_close(alone[0], latents[user])


@pytest.mark.parametrize("variant", VARIANTS)
def test_users_without_context_share_a_learned_latent(variant):
    encoder, (embeds, mask) = tiny_context_encoder(**variant), toy_context(users=3, pairs=5)
    empty = encoder(embeds, torch.zeros_like(mask))
    torch.testing.assert_close(empty, empty[:1].expand(3, -1))
    empty.sum().backward()
    assert encoder.empty_set.grad.abs().sum() > 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_is_not_embedded_and_without_any_pair_all_weights_take_part(variant):
    """Processes of DDP and ZeRO wait for gradients of all weights, whatever contexts were drawn."""
    encoder, (embeds, mask) = tiny_context_encoder(**variant), toy_context(users=3, pairs=5)
    embedded = []
    encoder.option_encoder.register_forward_hook(lambda _, inputs, __: embedded.append(len(inputs[0])))
    for present in (mask, torch.zeros_like(mask)):
        encoder.zero_grad()
        encoder(embeds, present).sum().backward()
        assert embedded[-1] == present.sum()
        assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_gated_memory_starts_as_a_shrunken_sum_of_differences():
    encoder, (embeds, mask) = tiny_context_encoder(memory_weights="gate"), toy_context(users=4, pairs=5)
    difference = ((embeds[:, :, 0] - embeds[:, :, 1]) * mask.unsqueeze(-1)).sum(dim=1)
    difference = difference / (1 + torch.nn.functional.softplus(torch.tensor(-2.0)) * mask.sum(dim=1, keepdim=True))
    memory = encoder(embeds, mask)[:, -CONTEXT_CONFIG["memory_size"] :]
    torch.testing.assert_close(memory, encoder.memory.code(difference), rtol=1e-4, atol=1e-4)


def test_posterior_pooling_is_bayes_rule():
    encoder = tiny_context_encoder(pooling="posterior", memory_size=0)
    odds = torch.tensor([[[0.9, 0.5], [0.9, 0.5]], [[0.2, 0.8], [0.9, 0.9]]])  # (users, pairs, types)
    mask = torch.tensor([[[True], [True]], [[True], [False]]])
    with torch.no_grad():
        encoder.empty_set = torch.nn.Parameter(torch.tensor([0.25, 0.75]).log())
        posterior = PosteriorPooling()(odds.logit(), mask, encoder)[:, :2] / 2
    joint = torch.tensor([[0.25 * 0.9 * 0.9, 0.75 * 0.5 * 0.5], [0.25 * 0.2, 0.75 * 0.8]])
    torch.testing.assert_close(posterior, joint / joint.sum(dim=1, keepdim=True))


def test_gaussian_latents_are_sampled_in_training_only():
    encoder, context = tiny_context_encoder(latent_distribution="gaussian", memory_size=0), toy_context(3, 5)
    torch.testing.assert_close(encoder(*context), encoder(*context))
    encoder.train()
    assert not torch.equal(encoder(*context), encoder(*context))


def test_standardizer_centres_scales_and_leaves_constant_dimensions():
    encoder = tiny_context_encoder()
    embeds = torch.randn(500, 6) * torch.tensor([1.0, 5.0, 0.1, 2.0, 1.0, 0.0]) + 3
    assert not encoder.standardizer.is_fitted
    encoder.standardizer.fit(embeds.split(60))
    assert encoder.standardizer.is_fitted
    standard = encoder.standardizer(embeds)
    torch.testing.assert_close(standard.mean(dim=0), torch.zeros(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(standard.std(dim=0, correction=0), torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 0.0]))


def test_statistics_are_in_the_checkpoint():
    encoder, other = tiny_context_encoder(), tiny_context_encoder()
    encoder.standardizer.fit([torch.randn(50, 6) + 2])
    other.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(other.standardizer.mean, encoder.standardizer.mean)


def test_wrong_shapes_are_named():
    encoder, (embeds, mask) = tiny_context_encoder(), toy_context(users=3, pairs=5)
    with pytest.raises(ValueError, match=r"`context_embeds` has shape \(3, 5, 2, 4\).*size 6"):
        encoder(embeds[..., :4], mask)
    with pytest.raises(ValueError, match=r"`context_mask` has shape \(3, 4\)"):
        encoder(embeds, mask[:, :4])


@pytest.mark.parametrize(
    "field, value",
    [
        ("pooling", "max"),
        ("pair_features", "product"),
        ("latent_distribution", "cauchy"),
        ("memory_weights", "uniform"),
    ],
)
def test_unknown_variants_are_refused(field, value):
    with pytest.raises(Exception, match=f"`{field}='{value}'` is unknown. Choose one of"):
        ContextEncoderConfig(**{field: value})


def test_a_memory_larger_than_the_latent_is_refused():
    with pytest.raises(Exception, match="`memory_size=64` must lie between 0 and `latent_size=32`"):
        ContextEncoderConfig(latent_size=32, memory_size=64)


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_runs_in_half_precision(variant):
    """As a merged policy does that is loaded in bfloat16."""
    encoder, (embeds, mask) = tiny_context_encoder(**variant), toy_context(users=3, pairs=5)
    expected = encoder(embeds, mask)
    latents = encoder.to(torch.bfloat16)(embeds, mask)
    assert latents.dtype == torch.bfloat16
    torch.testing.assert_close(latents.float(), expected, atol=0.1, rtol=0.1)

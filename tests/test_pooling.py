import pytest
import torch

from np_trl.models import ContextEncoder, ContextEncoderConfig
from np_trl.models.pooling import MAX_PAIR, POOLINGS, AttentionPooling, MeanPooling, PosteriorPooling, SumPooling


PAIRS = torch.arange(32.0).view(2, 2, 8)
MASK = torch.tensor([[[True], [True]], [[True], [False]]])
EMPTY_SET = torch.full((8,), 0.5)


def test_sum_and_mean_are_over_the_pairs_that_are_present():
    expected = torch.stack([PAIRS[0].sum(dim=0), PAIRS[1, 0]])
    torch.testing.assert_close(SumPooling(8)(PAIRS, MASK, EMPTY_SET), expected)
    torch.testing.assert_close(MeanPooling(8)(PAIRS, MASK, EMPTY_SET), expected / torch.tensor([[2], [1]]))


@pytest.mark.parametrize("pooling", [SumPooling, MeanPooling, AttentionPooling])
def test_without_pairs_it_is_the_learned_vector(pooling):
    torch.testing.assert_close(pooling(8)(PAIRS, MASK & False, EMPTY_SET), EMPTY_SET.expand(2, -1))


def test_attention_is_finite_for_pairs_of_any_size():
    pooled = AttentionPooling(8)(PAIRS * 1e30, MASK, EMPTY_SET)
    assert pooled.isfinite().all() and pooled.abs().max() < 1e3 * MAX_PAIR


def test_posterior_is_bayes_rule():
    odds = torch.tensor([[[0.9, 0.5], [0.9, 0.5]], [[0.2, 0.8], [0.9, 0.9]]])  # (users, pairs, types)
    prior = torch.tensor([0.25, 0.75])
    posterior = PosteriorPooling(2)(odds.logit(), MASK, prior.log())[:, :2] / 2
    joint = torch.tensor([[0.25 * 0.9 * 0.9, 0.75 * 0.5 * 0.5], [0.25 * 0.2, 0.75 * 0.8]])
    torch.testing.assert_close(posterior, joint / joint.sum(dim=1, keepdim=True))


@pytest.mark.parametrize("name", POOLINGS)
def test_weights_have_the_names_of_old_checkpoints(name):
    encoder = ContextEncoder(ContextEncoderConfig(embed_size=6, hidden_size=8, latent_size=12, memory_size=0))
    other = ContextEncoder(
        ContextEncoderConfig(embed_size=6, hidden_size=8, latent_size=12, memory_size=0, pooling=name)
    )
    added = {
        f"attention.{weight}" for weight in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
    }
    assert other.state_dict().keys() - encoder.state_dict().keys() == (added if name == "attention" else set())
    assert "empty_set" in other.state_dict()

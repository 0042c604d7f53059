"""Pooling of context pairs: the laws of each class of `pooling.py`. Those of pooled tokens are in `test_text_embedder.py`."""

import pytest
import torch

from np_trl.models import ContextEncoder, ContextEncoderConfig
from np_trl.models.pooling import MAX_PAIR, POOLINGS


PAIRS = torch.arange(32.0).view(2, 2, 8)
MASK = torch.tensor([[[True], [True]], [[True], [False]]])
ATTENTION = {f"attention.{name}" for name in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")}


def encoder(pooling: str) -> ContextEncoder:
    config = ContextEncoderConfig(embed_size=6, hidden_size=8, latent_size=12, memory_size=0, pooling=pooling)
    return ContextEncoder(config).eval()


def pool(pooling: str, pairs: torch.Tensor, mask: torch.Tensor = MASK) -> torch.Tensor:
    model = encoder(pooling)
    torch.nn.init.constant_(model.empty_set, 0.5)
    return model.pooling(pairs, mask, model)


def test_sum_and_mean_are_over_the_pairs_that_are_present():
    expected = torch.stack([PAIRS[0].sum(dim=0), PAIRS[1, 0]])
    torch.testing.assert_close(pool("sum", PAIRS), expected)
    torch.testing.assert_close(pool("mean", PAIRS), expected / torch.tensor([[2], [1]]))


@pytest.mark.parametrize("pooling", ["sum", "mean", "attention"])
def test_without_pairs_it_is_the_learned_vector(pooling):
    assert torch.equal(pool(pooling, PAIRS, MASK & False), torch.full((2, 8), 0.5))


def test_without_pairs_the_posterior_is_the_prior():
    assert torch.equal(pool("posterior", PAIRS, MASK & False), torch.cat([torch.ones(2, 8), torch.zeros(2, 8)], dim=1))


def test_attention_is_finite_for_pairs_of_any_size():
    pooled = pool("attention", PAIRS * 1e30)
    assert pooled.isfinite().all() and pooled.abs().max() < 1e3 * MAX_PAIR


@pytest.mark.parametrize("pooling", POOLINGS)
def test_weights_have_the_names_of_old_checkpoints(pooling):
    names = encoder(pooling).state_dict().keys()
    added = ATTENTION if pooling == "attention" else set()
    assert "empty_set" in names and names - encoder("sum").state_dict().keys() == added

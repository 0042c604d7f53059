"""Maps from latents to modulations: bounded, a step of training changes little."""

import math

import pytest
import torch

from np_trl.models.hypernetwork import Hypernetwork, bound
from np_trl.models.modulation import FiLM


def test_latents_of_any_length_are_brought_into_the_unit_ball():
    latents = torch.randn(5, 64) * torch.tensor([1e-6, 0.1, 1.0, 50.0, 1e6]).unsqueeze(1)
    bounded = bound(latents)
    torch.testing.assert_close(bounded.norm(dim=1), latents.norm(dim=1) / (64 + latents.square().sum(dim=1)).sqrt())
    assert bounded.norm(dim=1).max() <= 1 + 1e-6
    torch.testing.assert_close(torch.cosine_similarity(bounded, latents), torch.ones(5))
    torch.testing.assert_close(bounded[0], latents[0] / 8)  # linear at the origin, as the empty set is near it


def test_the_empty_set_has_a_modulation_of_its_own():
    network = Hypernetwork(latent_size=8, output_size=3, is_bounded=True)
    torch.nn.init.ones_(network.bias)
    assert torch.equal(network(torch.zeros(1, 8)), torch.ones(1, 3))


def test_an_unbounded_map_is_linear():
    network = Hypernetwork(latent_size=8, output_size=3, is_bounded=False)
    torch.nn.init.normal_(network.weight)
    latents = 50 * torch.randn(2, 8)
    assert torch.equal(network(latents), latents @ network.weight.T)


@pytest.mark.parametrize(("is_bounded", "smallest", "largest"), [(True, 1e-3, 0.02), (False, 5.0, math.inf)])
def test_a_step_of_training_changes_a_layer_by_little_however_long_latents_are(is_bounded, smallest, largest):
    torch.manual_seed(0)
    latents = 50 * torch.randn(4, 256)  # as of an encoder that started from a reward model
    film = FiLM(256, num_layers=3, hidden_size=4, is_bounded=is_bounded)
    optimizer = torch.optim.Adam(film.parameters(), lr=1e-3)
    film(latents)[:1].sum().backward()
    optimizer.step()
    scales = film(latents)[0, :, 0].detach()
    assert smallest < (scales - 1).abs().max() < largest

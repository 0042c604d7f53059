import math

import numpy as np
import pytest

from np_trl.populations.correlated import (
    correlated_bayes_error,
    correlated_conflict_rate,
    correlated_population,
)


def columns(correlation: float, num_users: int = 400, pairs_per_user: int = 50):
    dataset = correlated_population(num_users, pairs_per_user, correlation, seed=0).with_format("numpy")
    return dataset["chosen_embeds"][:], dataset["rejected_embeds"][:], dataset["kind"][:]


@pytest.mark.parametrize("correlation", [-1.0, -0.7, 0.0, 0.7, 1.0])
def test_scores_correlate_and_conflict_as_they_should(correlation):
    chosen, rejected, _ = columns(correlation)
    options = np.concatenate([chosen, rejected])
    assert abs(np.corrcoef(options.T)[0, 1] - correlation) < 4 * (1 - correlation**2) / len(options) ** 0.5 + 1e-6
    np.testing.assert_allclose(options.std(axis=0), 1, atol=0.03)
    conflict = (np.prod(chosen - rejected, axis=1) < 0).mean()
    expected = 0.5 - math.asin(correlation) / math.pi
    assert correlated_conflict_rate(correlation) == pytest.approx(expected)
    assert abs(conflict - expected) <= 4 * 0.5 / len(chosen) ** 0.5


def test_every_user_chooses_by_the_score_of_its_kind():
    chosen, rejected, kind = columns(0.0)
    assert (np.take_along_axis(chosen - rejected, kind[:, None], axis=1) > 0).all()
    assert kind.mean() == 0.5


def test_bayes_error():
    assert correlated_bayes_error(-1.0, [0, 1, 3]) == {0: 0.5, 1: 0, 3: 0}
    assert correlated_bayes_error(0.0, [1, 3]) == pytest.approx({1: 0.25, 3: 0.0625})
    for correlation in (-0.7, -0.35, 0.35, 0.9):
        expected = 0.25 + math.asin(correlation) / (2 * math.pi)
        assert correlated_bayes_error(correlation, [1])[1] == pytest.approx(expected)


def test_same_seed_same_choices():
    assert (columns(0.7)[0] == columns(0.7)[0]).all()

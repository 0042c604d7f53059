import numpy as np

from np_trl.populations.piecewise import piecewise_bayes_accuracy, piecewise_population, piecewise_reward


def test_rewards_of_equation_9():
    options = np.array([0.2, 0.5, 0.6, 1.0])
    np.testing.assert_allclose(piecewise_reward(options, np.zeros(4)), [0.2, 0.5, 1.2, 2.0])
    np.testing.assert_allclose(piecewise_reward(options, np.ones(4)), [0.2, 0.5, 0.4, 0.0])


def test_choices_follow_the_reward_and_half_of_the_pairs_conflict():
    dataset = piecewise_population(num_users=200, pairs_per_user=50, seed=0)
    chosen, rejected = np.array(dataset["chosen_embeds"])[:, 0], np.array(dataset["rejected_embeds"])[:, 0]
    kind = np.array(dataset["kind"])
    assert (piecewise_reward(chosen, kind) >= piecewise_reward(rejected, kind)).all()
    conflict = (piecewise_reward(chosen, 1 - kind) < piecewise_reward(rejected, 1 - kind)).mean()
    assert abs(conflict - 0.5) < 4 * 0.5 / len(dataset) ** 0.5


def test_bayes_limit():
    assert piecewise_bayes_accuracy([0, 1, 3]) == {0: 0.75, 1: 0.875, 3: 0.96875}

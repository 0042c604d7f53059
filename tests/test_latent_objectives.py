import math

import pytest
import torch
from torch.distributions import Normal

from np_trl import NPRewardConfig, NPRewardModel, NPRewardModelConfig, NPRewardTrainer
from np_trl.data import ContextualCollator, EmbeddingTargets, PreferenceRows, TaskSampling, TrainingTasks
from np_trl.models.modeling_np_reward import NPRewardOutput
from np_trl.trainer.latent_objectives import (
    LATENT_OBJECTIVES,
    joint_log_likelihood,
    latent_loss,
    mean_log_likelihood,
    predictive_margins,
    target_sets,
)

from .testing_utils import CONTEXT_CONFIG, embedded_rows, losses, reward_config


def gaussian_model() -> NPRewardModel:
    torch.manual_seed(0)
    context_config = {**CONTEXT_CONFIG, "latent_distribution": "gaussian"}
    return NPRewardModel(NPRewardModelConfig(embed_size=6, hidden_size=16, context_config=context_config))


def build(path, dataset=None, **kwargs) -> NPRewardTrainer:
    dataset = embedded_rows(num_users=16, pairs_per_user=20) if dataset is None else dataset
    return NPRewardTrainer(
        gaussian_model(), args=reward_config(path, **kwargs), train_dataset=dataset, eval_dataset=dataset
    )


def test_likelihoods_are_of_all_choices_of_a_user_together():
    margins = torch.tensor([[0.0, 2.0, -1.0], [1.0, 0.0, 3.0]])
    joint = joint_log_likelihood(margins, torch.tensor([0, 0, 1]), num_users=2)
    probabilities = margins.sigmoid()
    torch.testing.assert_close(joint.exp(), torch.stack([probabilities[:, :2].prod(1), probabilities[:, 2]], dim=1))
    torch.testing.assert_close(mean_log_likelihood(joint).exp(), joint.exp().mean(0))
    torch.testing.assert_close(predictive_margins(margins).sigmoid(), probabilities.mean(0))


def test_the_objectives_are_their_formulas():
    torch.manual_seed(0)
    log_likelihood = -torch.rand(4, 3)
    moments = [(torch.randn(3, 5), torch.rand(3, 5) + 0.1) for _ in range(2)]
    outputs = NPRewardOutput(context_moments=moments[0], target_moments=moments[1])
    num_targets = torch.tensor([2, 2, 4])

    def loss(objective):
        return latent_loss(objective, log_likelihood, outputs, num_targets, memory_size=2, kl_weight=0.5)

    def divergence(mean, std, prior_mean, prior_std):  # of the first three components, in closed form
        terms = (prior_std / std).log() + (std**2 + (mean - prior_mean) ** 2) / (2 * prior_std**2) - 0.5
        return terms[:, :3].sum()

    torch.testing.assert_close(loss("maximum_likelihood"), -log_likelihood.exp().mean(0).log().sum() / 8)
    expected = -log_likelihood.mean(0).sum()
    torch.testing.assert_close(loss("elbo"), (expected + 0.5 * divergence(*moments[1], *moments[0])) / 8)
    standard = torch.zeros(3, 5), torch.ones(3, 5)
    torch.testing.assert_close(loss("vpl"), (expected + 0.5 * divergence(*moments[0], *standard)) / 8)


@pytest.mark.parametrize("context_in_target", [True, False])
def test_target_sets_hold_each_users_pairs(context_in_target):
    rows = PreferenceRows(embedded_rows(num_users=4))
    sampling = TaskSampling(min_context=1, max_context=3, num_targets=4, context_in_target=context_in_target)
    tasks = TrainingTasks(rows, sampling, seed=0)
    items = [tasks[index] for index in range(3)]
    sets = target_sets(ContextualCollator(EmbeddingTargets())(items), context_in_target)
    for user, task in enumerate(items):
        contexts, targets = task.draw()
        pairs = targets if context_in_target else [*contexts, *targets]
        torch.testing.assert_close(sets["target_embeds"][user][sets["target_mask"][user]], rows.embeds(pairs))


@pytest.mark.parametrize("objective", LATENT_OBJECTIVES)
@pytest.mark.parametrize("context_in_target", [True, False])
def test_every_objective_trains(tmp_path, objective, context_in_target):
    trainer = build(
        tmp_path,
        latent_objective=objective,
        context_in_target=context_in_target,
        max_steps=80,
        per_device_train_batch_size=8,
        logging_steps=10,
        learning_rate=3e-3,
    )
    trainer.train()
    assert all(math.isfinite(loss) for loss in losses(trainer))
    assert losses(trainer)[-1] < losses(trainer)[0]
    metrics = trainer.evaluate()
    assert metrics["eval_nc2_accuracy"] > metrics["eval_nc0_accuracy"]
    assert metrics["eval_nc0_ece"] < 0.2


def test_probabilities_are_averaged_over_the_latent_and_evaluation_is_repeatable(tmp_path):
    trainer = build(tmp_path, max_steps=40, learning_rate=1e-2, eval_num_latent_samples=32)
    trainer.train()
    metrics = trainer.evaluate()
    torch.manual_seed(7)
    again = trainer.evaluate()
    assert all(again[key] == value for key, value in metrics.items() if key.startswith("eval_nc"))
    batch = next(iter(trainer.get_eval_dataloader()))
    inputs = {key: value for key, value in batch.items() if key != "conditions"}
    trainer.model.eval()
    with torch.no_grad():
        trainer.compute_loss(trainer.model, dict(inputs))
        noise = torch.randn(32, 1, CONTEXT_CONFIG["latent_size"], generator=torch.Generator().manual_seed(42))
        margins = trainer.model.choice_logits(trainer.model(**inputs, latent_noise=noise))
    torch.testing.assert_close(trainer.record.margins.sigmoid(), margins.sigmoid().mean(0))
    # the choices of one user hang together through the latent: together they are likelier than one by one
    alone = torch.nn.functional.logsigmoid(trainer.record.margins)
    users = inputs["context_index"].chunk(2)[0]
    independent = alone.new_zeros(len(inputs["context_mask"])).index_add(0, users, alone)
    assert trainer.record.joint.mean() > independent.mean()


def test_the_divergence_counts(tmp_path):
    """A heavy weight presses q(z | D^C) to the standard normal."""

    def distance(kl_weight):
        trainer = build(
            tmp_path, latent_objective="vpl", kl_weight=kl_weight, max_steps=60, learning_rate=1e-2, max_context=6
        )
        trainer.train()
        trainer.model.eval()
        batch = next(iter(trainer.get_eval_dataloader()))
        mean, std = trainer.model.context_encoder.moments(batch["context_embeds"], batch["context_mask"])
        size = CONTEXT_CONFIG["latent_size"] - CONTEXT_CONFIG["memory_size"]
        posterior = Normal(mean[:, :size], std[:, :size])
        return torch.distributions.kl_divergence(posterior, Normal(0.0, 1.0)).mean().item()

    assert distance(10.0) < distance(0.0) / 3


def test_an_unknown_objective_is_refused(tmp_path):
    with pytest.raises(ValueError, match="latent_objective='map'.*maximum_likelihood"):
        NPRewardConfig(str(tmp_path), latent_objective="map", use_cpu=True)
    with pytest.raises(ValueError, match="`num_latent_samples=0` must be at least 1"):
        NPRewardConfig(str(tmp_path), num_latent_samples=0, use_cpu=True)

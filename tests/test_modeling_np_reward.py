import pytest
import torch
from transformers import AutoModel

from np_trl import NPRewardModel, NPRewardModelConfig
from np_trl.models.modeling_np_reward import NPRewardOutput

from .testing_utils import CONTEXT_CONFIG, tiny_reward_model, toy_context


INDEX = torch.tensor([0, 0, 1, 1, 2, 2])


def move_away_from_zero(model):
    torch.manual_seed(1)
    for parameter in model.head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def test_untrained_model_is_the_mean_difference_scorer():
    model, (context, mask), options = tiny_reward_model().eval(), toy_context(3, 5), torch.randn(6, 6)
    difference = ((context[:, :, 0] - context[:, :, 1]) * mask.unsqueeze(-1)).sum(dim=1)  # (U, E)
    # shrinkage scales all rewards of a user alike
    difference = difference / (1 + torch.nn.functional.softplus(torch.tensor(-2.0)) * mask.sum(dim=1, keepdim=True))
    expected = (options * difference[INDEX]).sum(dim=-1) / model.config.context_config.memory_size
    rewards = model(options, context_embeds=context, context_mask=mask, context_index=INDEX).logits.squeeze(-1)
    torch.testing.assert_close(rewards, expected, rtol=1e-3, atol=1e-3)


def test_rows_of_different_users_do_not_mix():
    model, (context, mask), options = (
        move_away_from_zero(tiny_reward_model()).eval(),
        toy_context(3, 5),
        torch.randn(6, 6),
    )
    rewards = model(options, context_embeds=context, context_mask=mask, context_index=INDEX).logits
    for user in range(3):
        alone = model(
            options[INDEX == user],
            context_embeds=context[user : user + 1],
            context_mask=mask[user : user + 1],
            context_index=torch.zeros(2, dtype=torch.long),
        ).logits
        torch.testing.assert_close(alone, rewards[INDEX == user])


def test_latents_and_contexts_give_the_same_rewards():
    model, (context, mask), options = (
        move_away_from_zero(tiny_reward_model()).eval(),
        toy_context(3, 5),
        torch.randn(6, 6),
    )
    by_context = model(options, context_embeds=context, context_mask=mask, context_index=INDEX).logits
    by_latents = model(options, latents=model.infer_latents(context, mask), context_index=INDEX).logits
    torch.testing.assert_close(by_context, by_latents)


@pytest.mark.parametrize("head", ["bradley_terry", "mean_variance"])
def test_unconditional_models_ignore_the_context(head):
    model, (context, mask), options = (
        tiny_reward_model(conditional=False, head=head),
        toy_context(3, 5),
        torch.randn(6, 6),
    )
    move_away_from_zero(model).eval()
    rewards = model(options, context_embeds=context, context_mask=mask, context_index=INDEX).logits
    assert rewards.abs().min() > 0
    torch.testing.assert_close(rewards, model(options).logits)


def test_choice_logits_of_the_mean_variance_head():
    model = tiny_reward_model(conditional=False, head="mean_variance")
    outputs = NPRewardOutput(
        logits=torch.tensor([[1.0], [0.2]]), log_stds=torch.tensor([[0.3], [-0.4]])
    )  # one pair: 1.0 against 0.2
    std = (torch.tensor(0.6).exp() + torch.tensor(-0.8).exp()).sqrt()
    probability = torch.distributions.Normal(0, 1).cdf(0.8 / std)
    torch.testing.assert_close(model.choice_logits(outputs), torch.logit(probability).unsqueeze(0))


@pytest.mark.parametrize("kwargs", [{}, {"head": "mean_variance"}, {"conditional": False}])
def test_save_and_load_keep_the_rewards(tmp_path, kwargs):
    model, (context, mask), options = tiny_reward_model(**kwargs), toy_context(3, 5), torch.randn(6, 6)
    move_away_from_zero(model).eval().save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    inputs = {"context_embeds": context, "context_mask": mask, "context_index": INDEX}
    assert type(loaded) is type(model)
    torch.testing.assert_close(loaded(options, **inputs).logits, model(options, **inputs).logits)


def test_bad_inputs_are_named():
    model = tiny_reward_model()
    with pytest.raises(ValueError, match=r"`option_embeds` has shape \(4, 5\).*\(options, 6\)"):
        model(torch.randn(4, 5))
    with pytest.raises(ValueError, match="Pass `latents`, or `context_embeds` and `context_mask`"):
        model(torch.randn(4, 6))
    with pytest.raises(Exception, match="`head='ordinal'` is unknown"):
        tiny_reward_model(head="ordinal")


def randomize(module) -> None:
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)


def two_users(embed_size: int = 6) -> dict:
    """Inputs for two users, two options each."""
    context_embeds, context_mask = toy_context(2, 3, embed_size)
    generator = torch.Generator().manual_seed(1)
    return {
        "option_embeds": torch.randn(4, embed_size, generator=generator),
        "option_ids": torch.tensor([1, 0, 2, 2]),
        "context_embeds": context_embeds,
        "context_mask": context_mask,
        "context_option_ids": torch.tensor([[[1, 2], [2, 0], [0, 0]]] * 2),
        "context_index": torch.tensor([0, 1, 0, 1]),
    }


def test_options_that_recur_carry_a_learned_vector_and_others_do_not():
    model = tiny_reward_model(option_ids=["a", "b"], option_dropout=0.5).eval()
    inputs = two_users()
    randomize(model.head)
    before = model(**inputs).logits
    assert torch.equal(before, model(**{key: value for key, value in inputs.items() if "ids" not in key}).logits)
    torch.nn.init.normal_(model.option_vectors.weight)
    after = model(**inputs).logits
    assert (after[[0, 2, 3]] != before[[0, 2, 3]]).all()
    nobody = {**inputs, "context_mask": torch.zeros(2, 3, dtype=torch.bool)}
    unknown = {**nobody, "option_ids": torch.zeros(4, dtype=torch.long)}
    assert torch.equal(model(**nobody).logits[1], model(**unknown).logits[1])
    assert not torch.equal(model(**nobody).logits[0], model(**unknown).logits[0])
    # dropped in a whole batch, in training alone
    model.train()
    torch.manual_seed(0)
    draws = torch.stack([model.option_vectors.kept().squeeze(1) for _ in range(200)])
    assert draws[:, 0].sum() == 0 and 0.35 < draws[:, 1:].mean() < 0.65
    model.eval()
    assert model.option_vectors.kept().squeeze(1).tolist() == [0, 1, 1]


def test_gaussian_latents_are_sampled_by_the_noise_that_is_given():
    config = {**CONTEXT_CONFIG, "latent_distribution": "gaussian"}
    model = NPRewardModel(NPRewardModelConfig(embed_size=6, hidden_size=16, context_config=config)).eval()
    randomize(model.head)
    inputs = two_users()
    noise = torch.randn(5, 2, config["latent_size"])
    outputs = model(**inputs, latent_noise=noise)
    mean, std = outputs.context_moments
    assert outputs.logits.shape == (5, 4, 1) and model.choice_logits(outputs).shape == (5, 2)
    assert (std[:, :4] > 0).all() and (std[:, 4:] == 0).all()  # the memory channel is no random variable
    one = {key: inputs[key] for key in ("option_embeds", "context_index")}
    torch.testing.assert_close(outputs.logits[3], model(**one, latents=mean + std * noise[3]).logits)
    torch.testing.assert_close(model(**inputs).logits, model(**one, latents=mean).logits)
    model.train()
    assert not torch.equal(model(**inputs).logits, model(**inputs).logits)
    assert not torch.equal(model.infer_latents(inputs["context_embeds"], inputs["context_mask"]), mean)


def test_samples_of_the_targets_latents_keep_the_memory_of_the_context():
    config = {**CONTEXT_CONFIG, "latent_distribution": "gaussian"}
    model = NPRewardModel(NPRewardModelConfig(embed_size=6, hidden_size=16, context_config=config)).eval()
    randomize(model.head)
    inputs = two_users()
    target_embeds, target_mask = torch.randn(2, 4, 2, 6), torch.ones(2, 4, dtype=torch.bool)
    outputs = model(**inputs, target_embeds=target_embeds, target_mask=target_mask)
    latents = torch.cat([outputs.target_moments[0][:, :4], outputs.context_moments[0][:, 4:]], dim=-1)
    expected = model(inputs["option_embeds"], latents=latents, context_index=inputs["context_index"])
    torch.testing.assert_close(outputs.logits, expected.logits)

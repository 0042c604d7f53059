import pytest
import torch
from transformers import AutoModel

from np_trl.models.modeling_np_reward import NPRewardOutput

from .testing_utils import tiny_reward_model, toy_context


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

import pytest
import torch
from transformers import AutoModel

from np_trl import NPRewardModel, NPRewardModelConfig
from np_trl.data.embeddings import text_id
from np_trl.models.modeling_np_reward import NPRewardOutput

from .test_remote_code import run_without_np_trl
from .test_text_embedder import tiny_bert
from .testing_utils import CONTEXT_CONFIG, tiny_reward_model, toy_context


INDEX = torch.tensor([0, 0, 1, 1, 2, 2])


def move_away_from_zero(model):
    torch.manual_seed(1)
    for parameter in model.head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def test_untrained_model_is_the_mean_difference_scorer():
    context_config = {**CONTEXT_CONFIG, "memory_weights": "gate"}
    model = tiny_reward_model(context_config=context_config).eval()
    (context, mask), options = toy_context(3, 5), torch.randn(6, 6)
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


PAIRS = [
    {"prompt": "a", "chosen": "take it slow", "rejected": "ask a buddy"},
    {"prompt": "so", "chosen": "it goes", "rejected": "a buddy goes"},
]
OPTIONS = [{"prompt": "a", "completion": "so it goes"}, {"prompt": "so", "completion": "take it slow"}]


def text_reward_model(path, kind: str = "response", **kwargs) -> NPRewardModel:
    """A reward model of size 6 with a tiny embedder."""
    model = tiny_reward_model(embedder={"name_or_path": tiny_bert(path), "kind": kind}, **kwargs).eval()
    randomize(model.head)
    return model


@pytest.mark.parametrize("kind", ["response", "prompt_response"])
def test_a_text_is_scored_as_its_embedding_is(tmp_path, kind):
    model = text_reward_model(tmp_path, kind)
    texts = {"response": ["so it goes", "take it slow"], "prompt_response": ["a\nso it goes", "so\ntake it slow"]}
    embeds = model.text_embedder.embed(texts[kind])  # (2, E)
    latents = torch.randn(2, 12)
    torch.testing.assert_close(model.score(OPTIONS, latents), model(embeds, latents=latents).logits.squeeze(-1))
    swapped = torch.tensor([1, 0])
    expected = model(embeds, latents=latents, context_index=swapped).logits.squeeze(-1)
    torch.testing.assert_close(model.score(OPTIONS, latents, swapped), expected)
    one = model(embeds, latents=latents[:1], context_index=torch.tensor([0, 0])).logits.squeeze(-1)
    torch.testing.assert_close(model.score(OPTIONS, latents[:1]), one)


def test_a_user_given_by_texts_is_the_user_given_by_their_embeddings(tmp_path):
    model = text_reward_model(tmp_path)
    texts = [pair[side] for pair in PAIRS for side in ("chosen", "rejected")]
    context = model.text_embedder.embed(texts).view(1, 2, 2, 6)
    torch.testing.assert_close(model.embed_pairs(PAIRS), context)
    torch.testing.assert_close(model.infer_user(PAIRS), model.infer_latents(context, torch.ones(1, 2)))
    nobody = model.infer_latents(torch.randn(1, 3, 2, 6), torch.zeros(1, 3))
    torch.testing.assert_close(model.infer_user([]), nobody)
    torch.testing.assert_close(model.score(OPTIONS), model.score(OPTIONS, nobody))


def test_known_texts_carry_their_learned_vectors(tmp_path):
    known = ["take it slow", "a buddy goes"]
    model = text_reward_model(tmp_path, option_ids=[*map(text_id, known), "joke 7"])
    torch.nn.init.normal_(model.option_vectors.weight)
    context_ids = torch.tensor([[[1, 0], [0, 2]]])
    latents = model.infer_latents(model.embed_pairs(PAIRS), torch.ones(1, 2), context_ids)
    torch.testing.assert_close(model.infer_user(PAIRS), latents)
    assert not torch.equal(latents, model.infer_latents(model.embed_pairs(PAIRS), torch.ones(1, 2)))
    embeds, index = model.text_embedder.embed_options(OPTIONS), torch.tensor([0, 0])
    expected = model(embeds, latents=latents, context_index=index, option_ids=torch.tensor([0, 1])).logits
    torch.testing.assert_close(model.score(OPTIONS, latents), expected.squeeze(-1))
    # ids of the dataset's own
    named = model(embeds, latents=latents, context_index=index, option_ids=torch.tensor([3, 1])).logits
    options = [{**OPTIONS[0], "option_id": "joke 7"}, OPTIONS[1]]
    torch.testing.assert_close(model.score(options, latents), named.squeeze(-1))
    pairs = [{**PAIRS[0], "rejected_option_id": "joke 7"}, PAIRS[1]]
    context_ids[0, 0, 1] = 3
    latents = model.infer_latents(model.embed_pairs(pairs), torch.ones(1, 2), context_ids)
    torch.testing.assert_close(model.infer_user(pairs), latents)


def test_the_embedder_is_no_part_of_the_model(tmp_path):
    model = text_reward_model(tmp_path / "bert")
    names, modules = set(model.state_dict()), len(list(model.modules()))
    assert names == set(tiny_reward_model().state_dict())
    rewards = model.score(OPTIONS)
    assert set(model.state_dict()) == names and len(list(model.modules())) == modules
    model.save_pretrained(tmp_path / "reward")
    loaded = AutoModel.from_pretrained(tmp_path / "reward")
    assert loaded.config.embedder == model.config.embedder
    torch.testing.assert_close(loaded.score(OPTIONS), rewards)
    # the embedder is asked for when there is a text, not before
    loaded.config.embedder = {"name_or_path": "no/such-embedder"}
    loaded.save_pretrained(tmp_path / "lost")
    lost = AutoModel.from_pretrained(tmp_path / "lost")
    with pytest.raises(OSError, match="no/such-embedder"):
        lost.score(OPTIONS)
    lost.text_embedder = model.text_embedder
    torch.testing.assert_close(lost.score(OPTIONS), rewards)


def test_what_a_model_cannot_score_is_named(tmp_path):
    with pytest.raises(ValueError, match="`embedder=None`.*Set `model.config.embedder`"):
        tiny_reward_model().score(OPTIONS)
    path = tiny_bert(tmp_path)
    with pytest.raises(ValueError, match="gives embeddings of size 6, but this model has `embed_size=5`"):
        tiny_reward_model(embed_size=5, embedder={"name_or_path": path}).score(OPTIONS)
    model = tiny_reward_model(embedder={"name_or_path": path})
    with pytest.raises(ValueError, match="`texts` is empty"):
        model.embed_pairs([])
    with pytest.raises(ValueError, match=r"Pair 0 has no \['rejected'\]"):
        model.infer_user([{"chosen": "a"}])
    unconditional = tiny_reward_model(conditional=False, embedder={"name_or_path": path}).eval()
    assert unconditional.score(OPTIONS).shape == (2,)
    with pytest.raises(ValueError, match="`conditional=False`: it knows no users"):
        unconditional.infer_user(PAIRS)


def test_options_that_the_embedder_cannot_tell_apart_are_a_tie(tmp_path):
    model = tiny_reward_model(embedder={"name_or_path": tiny_bert(tmp_path), "max_length": 4}).eval()
    pair = {"chosen": "take it slow", "rejected": "take it so"}  # [CLS] take it [SEP]
    with pytest.raises(ValueError, match="Pair 1 are the same to the embedder.*`drop_ties=True`"):
        model.infer_user([PAIRS[0], pair])
    model.config.embedder["max_length"] = 5
    del model.text_embedder
    assert model.infer_user([PAIRS[0], pair]).isfinite().all()


def test_what_training_refuses_is_refused_with_its_words(tmp_path):
    model = text_reward_model(tmp_path, "prompt_response")
    for pair, message in (
        ({"chosen": "a", "rejected": "so"}, r"Pair 0 has no \['prompt'\]"),
        ({"prompt": "a", "chosen": "so", "rejected": "so"}, "Pair 0 are the same"),
        ({"prompt": "a", "chosen": "", "rejected": "so"}, "`chosen` of Pair 0 is empty"),
        ({"prompt": "a", "chosen": 5, "rejected": "so"}, "`chosen` of Pair 0 is '5'"),
        ("so", "a preference pair is a dict"),
    ):
        with pytest.raises(ValueError, match=message):
            model.infer_user([pair])
    with pytest.raises(ValueError, match="`completion` of option 0 is empty"):
        model.score([{"prompt": "a", "completion": ""}])


@pytest.mark.parametrize(
    ("embedder", "message"),
    [
        ({"name_or_path": ""}, "`name_or_path=''` names no embedder"),
        ({"name_or_path": 5}, "`name_or_path=5` names no embedder"),
        ({"name_or_path": "bert", "poolin": "mean"}, r"unknown keys \['poolin'\]. It takes \['name_or_path'"),
        ({"pooling": "mean"}, "has no `name_or_path`"),
        ({"name_or_path": "bert", "pooling": "cls"}, "`pooling='cls'` is unknown"),
        ({"name_or_path": "bert", "max_length": "long"}, "'max_length' expected int, got str"),
    ],
)
def test_a_bad_embedder_is_named_when_the_config_is_made(embedder, message):
    with pytest.raises(Exception, match=message):
        NPRewardModelConfig(embedder=embedder)


def test_texts_are_scored_without_np_trl(tmp_path):
    model = text_reward_model(tmp_path / "bert", option_ids=[text_id("take it slow")])
    torch.nn.init.normal_(model.option_vectors.weight)
    model.save_pretrained(tmp_path / "reward")
    rewards = model.score(OPTIONS, model.infer_user(PAIRS))
    torch.save({"pairs": PAIRS, "options": OPTIONS, "rewards": rewards}, tmp_path / "expected.pt")
    run_without_np_trl(
        """
import torch
from transformers import AutoModel
expected = torch.load("expected.pt")
model = AutoModel.from_pretrained("reward", trust_remote_code=True)
rewards = model.score(expected["options"], model.infer_user(expected["pairs"]))
torch.testing.assert_close(rewards, expected["rewards"])
""",
        tmp_path,
    )


def test_dropout_of_embeddings_leaves_the_vectors_of_options():
    """Without embeddings, known options still differ, and by their numbers alone."""
    torch.manual_seed(0)
    model = tiny_reward_model(option_ids=["a", "b"], option_dropout=0.0, embed_dropout=1.0)
    move_away_from_zero(model)
    torch.nn.init.normal_(model.option_vectors.weight)
    options, numbers = torch.randn(4, 6), torch.tensor([1, 1, 2, 2])
    latents = torch.randn(1, model.config.context_config.latent_size)
    index = torch.zeros(4, dtype=torch.long)
    rewards = model.train()(options, latents=latents, context_index=index, option_ids=numbers).logits.squeeze(-1)
    torch.testing.assert_close(rewards[::2], rewards[1::2])
    assert (rewards[0] - rewards[2]).abs() > 1e-3
    rewards = model.eval()(options, latents=latents, context_index=index, option_ids=numbers).logits.squeeze(-1)
    assert (rewards[0] - rewards[1]).abs() > 1e-3

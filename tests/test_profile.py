"""Profiles of users: exact forgetting, one model's alone, whole or not at all."""

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import save_file
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from np_trl import NPDPOTrainer, UserProfile, load_policy, select_pairs
from np_trl.users.fingerprint import fingerprint

from .test_text_context import PAIRS
from .test_text_embedder import tiny_bert
from .testing_utils import dpo_config, style_rows, tiny_base, tiny_policy, tiny_reward_model, tiny_tokenizer


MORE = [
    {"prompt": "How do I paint the door?", "chosen": " ask a buddy", "rejected": " take it slow"},
    {"prompt": "How do I sell the bike?", "chosen": " proceed with care", "rejected": " prepare the area"},
]
KINDS = ["policy", "reward"]


def build_policy(path):
    torch.manual_seed(0)
    policy = tiny_policy(path).eval()
    for module in (policy.model.film.weight, policy.model.context_encoder.memory.population.weight):
        torch.nn.init.normal_(module, std=0.1)
    return policy


def build(kind: str, path):
    if kind == "policy":
        return build_policy(path), tiny_tokenizer()
    torch.manual_seed(0)
    return tiny_reward_model(embedder={"name_or_path": tiny_bert(path)}).eval(), None


def profile(model, tokenizer, *pairs: dict) -> UserProfile:
    user = UserProfile(model, tokenizer)
    user.add(*pairs)
    return user


@pytest.mark.parametrize("kind", KINDS)
def test_a_profile_is_the_user_that_the_model_infers(tmp_path, kind):
    model, tokenizer = build(kind, tmp_path / "model")
    arguments = [] if tokenizer is None else [tokenizer]
    for pairs in ([], PAIRS):
        user = profile(model, tokenizer, *pairs)
        torch.testing.assert_close(user.latents, model.infer_user(pairs, *arguments), rtol=1e-4, atol=1e-5)
        assert len(user) == len(pairs)
    assert PAIRS[0] in user and MORE[0] not in user


@pytest.mark.parametrize("kind", KINDS)
def test_forgetting_is_exact(tmp_path, kind):
    model, tokenizer = build(kind, tmp_path / "model")
    never = profile(model, tokenizer, *PAIRS)
    user = profile(model, tokenizer, PAIRS[0], MORE[0], PAIRS[1], MORE[1])
    assert not torch.equal(user.latents, never.latents)
    for pair in MORE:
        user.remove(pair)
    assert torch.equal(user.latents, never.latents)
    user.save(tmp_path / "user.safetensors")
    never.save(tmp_path / "never.safetensors")
    assert (tmp_path / "user.safetensors").read_bytes() == (tmp_path / "never.safetensors").read_bytes()
    with pytest.raises(KeyError, match="None of the 2 choices"):
        user.remove(MORE[0])
    for pair in PAIRS:
        user.remove(pair)
    assert torch.equal(user.latents, UserProfile(model, tokenizer).latents)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_profile_is_the_same_user_in_a_few_kilobytes(tmp_path, kind):
    model, tokenizer = build(kind, tmp_path / "model")
    user, path = profile(model, tokenizer, *PAIRS, *MORE), tmp_path / "ada.safetensors"
    user.save(path)
    assert path.stat().st_size < 3_000  # 4 choices of 2 options of 32 numbers
    assert not any(word in path.read_bytes() for word in (b"bike", b"buddy"))
    again = UserProfile.load(path, model, tokenizer)
    assert torch.equal(again.latents, user.latents)
    again.remove(PAIRS[0])
    assert len(again) == 3
    UserProfile(model, tokenizer).save(path)
    assert len(UserProfile.load(path, model, tokenizer)) == 0


def test_profiles_of_other_models_and_damaged_files_are_refused(tmp_path):
    model, tokenizer = build("policy", tmp_path / "model")
    user, path = profile(model, tokenizer, *PAIRS), tmp_path / "ada.safetensors"
    user.save(path)
    other = build_policy(tmp_path / "other")
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.weight.mul_(1.05)  # of the trunk
    with pytest.raises(ValueError, match="is of another model .*infer the user anew"):
        UserProfile.load(path, other, tokenizer)
    for method in (user.merge, lambda stranger: user.blend(stranger, 0.5)):
        with pytest.raises(ValueError, match="The other profile is of another model"):
            method(UserProfile(other, tokenizer))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="is not whole .*Save the profile again"):
        UserProfile.load(path, model, tokenizer)
    save_file({"weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="is no profile of a user"):
        UserProfile.load(path, model, tokenizer)
    with pytest.raises(ValueError, match="`conditional=False`"):
        UserProfile(tiny_reward_model(conditional=False))


def test_merged_profiles_hold_every_choice_once(tmp_path):
    model, tokenizer = build("policy", tmp_path / "model")
    merged = profile(model, tokenizer, *PAIRS).merge(profile(model, tokenizer, PAIRS[1], *MORE))
    assert torch.equal(merged.latents, profile(model, tokenizer, *PAIRS, *MORE).latents)


def test_between_two_users_lies_a_continuum(tmp_path):
    model, tokenizer = build("policy", tmp_path / "model")
    ada, bob = profile(model, tokenizer, *PAIRS), profile(model, tokenizer, *MORE)
    assert torch.equal(ada.blend(bob, 0.0), ada.latents) and torch.equal(ada.blend(bob, 1.0), bob.latents)
    torch.testing.assert_close(ada.blend(bob, 0.25), 0.75 * ada.latents + 0.25 * bob.latents)


def test_every_row_has_a_user_of_its_own(tmp_path):
    model, tokenizer = build("policy", tmp_path / "model")
    ada, bob = profile(model, tokenizer, *PAIRS), profile(model, tokenizer, *MORE)
    users, inputs = [ada, bob, ada.blend(bob, 0.5)], torch.randint(3, 500, (3, 5))
    together = model.generate(inputs, users=users, do_sample=False, max_new_tokens=8)
    latents = torch.cat([ada.latents, bob.latents, users[2]])
    assert together.equal(model.generate(inputs, latents=latents, do_sample=False, max_new_tokens=8))
    reward, _ = build("reward", tmp_path / "reward")
    ada, bob = profile(reward, None, *PAIRS), profile(reward, None, *MORE)
    options = [{"completion": " take it slow"}, {"completion": " ask a buddy"}]
    alone = [reward.score(options, user.latents) for user in (ada, bob)]
    torch.testing.assert_close(reward.score(options, users=[ada, bob]), torch.stack([alone[0][0], alone[1][1]]))
    assert not torch.allclose(alone[0], alone[1])
    for method in (lambda: model.generate(inputs, users=[]), lambda: reward.score(options, users=[])):
        with pytest.raises(ValueError, match="`users` is empty"):
            method()


def test_choices_may_be_given_as_embeddings(tmp_path):
    model = tiny_reward_model(embedder={"name_or_path": "nobody/has-this"}).eval()
    pair = {"chosen_embeds": [1.0, 0, 0, 0, 0, 0], "rejected_embeds": torch.zeros(6)}
    user = profile(model, None, pair)
    context = torch.stack([torch.tensor(pair["chosen_embeds"]), pair["rejected_embeds"]]).view(1, 1, 2, 6)
    assert torch.equal(user.latents, model.infer_latents(context, torch.ones(1, 1, dtype=torch.bool)))
    user.remove(pair)
    for wrong in ([1.0, 0.0], [float("nan")] * 6):
        with pytest.raises(ValueError, match=r"`rejected_embeds` has shape .*takes \(6,\), and finite"):
            user.add(pair, {**pair, "rejected_embeds": wrong})
    assert len(user) == 0


def test_an_adapter_and_the_policy_it_is_merged_into_share_profiles(tmp_path):
    trainer = NPDPOTrainer(
        tiny_base(tmp_path / "base"),
        args=dpo_config(tmp_path / "out"),
        train_dataset=style_rows(),
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(r=4, target_modules=["q_proj"], layers_to_transform=[1, 2]),
    )
    trainer.train()
    trainer.save_model()
    user = profile(trainer.model.eval(), tiny_tokenizer(), *PAIRS)
    user.save(tmp_path / "ada.safetensors")
    latents = user.latents
    trainer.save_merged(str(tmp_path / "merged"))
    pulled = get_class_from_dynamic_module("modeling_film_gemma.FiLMGemmaForCausalLM", str(tmp_path / "merged"))
    assert pulled.__module__.startswith("transformers_modules")
    for load, folder in ((load_policy, "out"), (load_policy, "merged"), (pulled.from_pretrained, "merged")):
        policy = load(str(tmp_path / folder))
        again = UserProfile.load(tmp_path / "ada.safetensors", policy.eval(), tiny_tokenizer())
        torch.testing.assert_close(again.latents, latents)
        (number,) = select_pairs([*PAIRS, *MORE], again, num_samples=4)
        assert number in (2, 3)  # of those that are new to it
    expected = fingerprint(policy)
    assert fingerprint(policy.bfloat16()) == expected

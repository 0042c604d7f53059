"""Profiles of users: exact forgetting, one model's alone, whole or not at all."""

import copy
import json
import os

import pytest
import torch
from accelerate import cpu_offload
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import save_file
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from np_trl import NPDPOTrainer, UserProfile, load_policy, select_pairs
from np_trl.users.choices import key_of, reverse
from np_trl.users.fingerprint import fingerprint
from np_trl.users.profile_file import FACTS
from np_trl.users.reference import reference_policy

from .test_text_context import PAIRS
from .test_text_embedder import tiny_bert
from .testing_utils import dpo_config, style_rows, tiny_base, tiny_policy, tiny_reward_model, tiny_tokenizer


MORE = [
    {"prompt": "How do I paint the door?", "chosen": " ask a buddy", "rejected": " take it slow"},
    {"prompt": "How do I sell the bike?", "chosen": " proceed with great care", "rejected": " prepare the area"},
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
    with pytest.raises(ValueError, match="is of another model .*infer the user again"):
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
        (question,) = select_pairs([*PAIRS, *MORE], again, num_samples=4)
        assert question.number in (2, 3)  # of those that are new to it
    expected = fingerprint(policy)
    assert fingerprint(policy.bfloat16()) == expected


def open_file(path) -> tuple[dict, dict]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()[FACTS])


DAMAGES = {
    "a flipped bit": lambda tensors, facts: (tensors | {"context_embeds": tensors["context_embeds"] * 1.0001}, facts),
    "a choice left out": lambda tensors, facts: (tensors, facts | {"choices": facts["choices"][:1]}),
    "keys that are no text": lambda tensors, facts: (tensors, facts | {"choices": [1, None]}),
    "no fingerprint": lambda tensors, facts: (tensors, {"choices": facts["choices"]}),
    "facts that are a list": lambda tensors, facts: (tensors, [1]),
}
# of a file without a hash of its content, as np_trl 0.1.0 wrote them
MISFITS = {
    "not finite": lambda tensors: tensors | {"context_embeds": tensors["context_embeds"] * float("nan")},
    "another size": lambda tensors: tensors | {"context_embeds": torch.zeros(1, 2, 2, 7)},
    "two users": lambda tensors: {
        name: values.repeat(2, *[1] * (values.dim() - 1)) for name, values in tensors.items()
    },
    "whole numbers": lambda tensors: tensors | {"context_embeds": tensors["context_embeds"].long()},
    "hidden choices": lambda tensors: tensors | {"context_mask": tensors["context_mask"] & False},
    "an argument too many": lambda tensors: tensors | {"item_embeds": torch.zeros(1, 2)},
    "an argument too few": lambda tensors: {"context_embeds": tensors["context_embeds"]},
    "no arguments": lambda tensors: {},
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    model, tokenizer = build("policy", folder / "model")
    user = profile(model, tokenizer, *PAIRS)
    user.save(folder / "ada.safetensors")
    return user, folder / "ada.safetensors"


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_profile_is_never_another_user(saved, tmp_path, damage):
    user, path = saved
    tensors, facts = damage(*open_file(path))
    save_file(tensors, tmp_path / "x.safetensors", {FACTS: json.dumps(facts)})
    with pytest.raises(ValueError, match="damaged"):
        UserProfile.load(tmp_path / "x.safetensors", user.model, user.tokenizer)


@pytest.mark.parametrize("misfit", MISFITS.values(), ids=MISFITS)
def test_choices_that_do_not_fit_the_model_are_refused_before_use(saved, tmp_path, misfit):
    user, path = saved
    tensors, facts = open_file(path)
    del facts["content"]
    save_file(misfit(tensors), tmp_path / "x.safetensors", {FACTS: json.dumps(facts)})
    with pytest.raises(ValueError, match="damaged profile, or one of another model"):
        UserProfile.load(tmp_path / "x.safetensors", user.model, user.tokenizer)
    save_file(tensors, tmp_path / "x.safetensors", {FACTS: json.dumps(facts | {"choices": list(map(key_of, PAIRS))})})
    old = UserProfile.load(tmp_path / "x.safetensors", user.model, user.tokenizer)
    assert torch.equal(old.latents, user.latents) and PAIRS[0] in old


def test_numbers_of_options_that_the_model_does_not_have_are_refused(tmp_path):
    model = tiny_reward_model(option_ids=["a", "b"]).eval()
    pair = {
        "chosen_embeds": [1.0] * 6,
        "rejected_embeds": [0.0] * 6,
        "chosen_option_id": "a",
        "rejected_option_id": "b",
    }
    UserProfile(model, None, [pair]).save(tmp_path / "x.safetensors")
    tensors, facts = open_file(tmp_path / "x.safetensors")
    assert tensors["context_option_ids"].tolist() == [[[1, 2]]]
    del facts["content"]
    for number in (3, -1):
        tensors["context_option_ids"] = torch.full((1, 1, 2), number)
        save_file(tensors, tmp_path / "x.safetensors", {FACTS: json.dumps(facts)})
        with pytest.raises(ValueError, match="numbers outside 0 to 2"):
            UserProfile.load(tmp_path / "x.safetensors", model)


def test_a_profile_tells_nothing_to_who_has_a_list_of_questions(saved, tmp_path):
    user, path = saved
    _, facts = open_file(path)
    candidates = [key_of(way) for pair in (*PAIRS, *MORE) for way in (pair, reverse(pair))]
    assert not set(candidates) & set(facts["choices"])
    again = UserProfile.load(path, user.model, user.tokenizer)
    assert all(pair in again and reverse(pair) not in again for pair in PAIRS) and MORE[0] not in again
    assert set(again.keys).isdisjoint(profile(user.model, user.tokenizer, *MORE).keys)


def test_a_profile_is_saved_beside_a_link_not_through_it(saved, tmp_path):
    user, _ = saved
    (tmp_path / "victim").write_text("precious")
    os.symlink(tmp_path / "victim", tmp_path / "ada.safetensors.part")
    user.save(tmp_path / "ada.safetensors")
    assert (tmp_path / "victim").read_text() == "precious" and not (tmp_path / "ada.safetensors").is_symlink()


CHANGES = {
    "statistics": lambda model: model.model.context_encoder.standardizer.mean.add_(0.1),
    "one weight": lambda model: model.model.context_encoder.option_encoder.input.weight[3, 5].add_(0.1),
    "one weight of the trunk": lambda model: model.model.layers[0].mlp.up_proj.weight[7, 11].add_(0.1),
    "one token": lambda model: model.model.embed_tokens.weight[200, 3].add_(0.1),
    "pooling of options": lambda model: setattr(model.config, "option_pooling", "last"),
    "length": lambda model: setattr(model.config, "context_max_length", 20),
    "truncation": lambda model: setattr(model.config, "context_truncation", "keep_end"),
    "pooling of pairs": lambda model: setattr(model.config.context_config, "pooling", "mean"),
    "norm": lambda model: setattr(model.config, "rms_norm_eps", 1e-3),
}
NO_CHANGES = {
    "above the trunk": lambda model: model.model.layers[2].mlp.up_proj.weight.add_(0.1),
    "modulation": lambda model: model.model.film.weight.add_(0.1),
    "beta": lambda model: setattr(model.config, "dpo_beta", 0.5),
    "end token": lambda model: setattr(model.config, "eos_token_id", 3),
    "place": lambda model: setattr(model.config, "_name_or_path", "elsewhere"),
}


@pytest.mark.parametrize("change", [*CHANGES, *NO_CHANGES])
@torch.no_grad()
def test_a_fingerprint_differs_where_latents_would(tmp_path, change):
    model = build_policy(tmp_path)
    before = fingerprint(model)
    {**CHANGES, **NO_CHANGES}[change](model)
    assert (fingerprint(model) != before) == (change in CHANGES)


def test_a_moved_embedder_is_the_same_and_another_one_is_not(tmp_path):
    def fingerprint_with(**settings) -> str:
        return fingerprint(tiny_reward_model(**settings))

    first = tiny_bert(tmp_path / "first")
    before = fingerprint_with(embedder={"name_or_path": first})
    (tmp_path / "first").rename(tmp_path / "moved")
    assert fingerprint_with(embedder={"name_or_path": str(tmp_path / "moved")}) == before
    assert fingerprint_with(embedder={"name_or_path": str(tmp_path / "moved"), "normalize": True}) != before
    weights = tmp_path / "moved" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-100] ^= 1
    weights.write_bytes(content)
    assert fingerprint_with(embedder={"name_or_path": str(tmp_path / "moved")}) != before
    ids = [["a", "b"], ["b", "a"]]
    assert len({fingerprint_with(option_ids=option_ids) for option_ids in ids}) == 2


def test_a_profile_of_another_model_is_refused_wherever_latents_enter(tmp_path):
    model, tokenizer = build("policy", tmp_path / "model")
    other = build_policy(tmp_path / "other")
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.weight.mul_(1.05)
    stranger, inputs = profile(other, tokenizer, *PAIRS), torch.randint(3, 500, (1, 5))
    reward = tiny_reward_model(embedder={"name_or_path": tiny_bert(tmp_path / "bert")}).eval()
    options = [{"completion": "take it slow"}]
    for method in (
        lambda: model.generate(inputs, users=[stranger], max_new_tokens=1),
        lambda: model(inputs, users=[stranger]),
        lambda: reward.score(options, users=[stranger]),
    ):
        with pytest.raises(ValueError, match="is of another model"):
            method()
    assert model(inputs, users=[profile(model, tokenizer, *PAIRS)]).logits.isfinite().all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_latents_that_no_choices_lead_to_are_refused(tmp_path, value):
    model, tokenizer = build("policy", tmp_path / "model")
    user, inputs = profile(model, tokenizer, *PAIRS), torch.randint(3, 500, (1, 5))
    blended = user.blend(profile(model, tokenizer, *MORE), value)
    for latents in (torch.full((1, 12), value), blended):
        for method in (
            lambda: model.generate(inputs, latents=latents, max_new_tokens=1),  # noqa: B023
            lambda: model.generate(inputs, users=[latents], max_new_tokens=1),  # noqa: B023
            lambda: model(inputs, latents=latents),  # noqa: B023
        ):
            with pytest.raises(ValueError, match="holds NaN, infinite values, or values beyond 1e\\+06"):
                method()


def test_the_reference_is_run_without_switching_the_adapter_off_for_others(tmp_path):
    trainer = NPDPOTrainer(
        tiny_base(tmp_path / "base"),
        args=dpo_config(tmp_path / "out"),
        train_dataset=style_rows(),
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(
            r=4,
            target_modules=["q_proj"],
            layers_to_transform=[1, 2],
            init_lora_weights=False,
        ),
    )
    policy, inputs = trainer.model.eval(), torch.randint(3, 500, (1, 5))
    with torch.no_grad():
        before = policy(inputs).logits
        with policy.disable_adapter():
            expected = policy(inputs).logits
        reference, seen = reference_policy(policy), []
        # while the reference runs, the policy is run by another thread
        hook = reference.get_base_model().model.layers[1].register_forward_hook(lambda *_: seen.append(policy(inputs)))
        assert torch.equal(reference(inputs).logits, expected) and not torch.equal(expected, before)
        hook.remove()
    assert torch.equal(seen[0].logits, before)
    assert {id(weight) for weight in reference.parameters()} == {id(weight) for weight in policy.parameters()}
    policy.base_model.merge_adapter()
    with pytest.raises(ValueError, match="Call `unmerge_adapter` first"):
        reference_policy(policy)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_is_offloaded_infers_the_same_user(tmp_path, kind):
    model, tokenizer = build(kind, tmp_path / "model")
    expected = profile(model, tokenizer, *PAIRS)
    offloaded = cpu_offload(copy.deepcopy(model), execution_device=torch.device("cpu"))
    assert all(weight.is_meta for weight in offloaded.parameters()) and offloaded.device.type == "cpu"
    user = profile(offloaded, tokenizer, *PAIRS)
    torch.testing.assert_close(user.latents, expected.latents)
    assert fingerprint(offloaded) == fingerprint(model)
    user.save(tmp_path / "ada.safetensors")
    assert len(UserProfile.load(tmp_path / "ada.safetensors", model, tokenizer)) == len(PAIRS)
    asked = [select_pairs([*PAIRS, *MORE], one, n=2, num_samples=4) for one in (user, expected)]
    assert [question.number for question in asked[0]] == [question.number for question in asked[1]]


def test_a_compiled_policy_asks_the_same(tmp_path):
    model, tokenizer = build("policy", tmp_path / "model")
    compiled = torch.compile(model)
    users = [profile(one, tokenizer, PAIRS[0]) for one in (model, compiled)]
    with torch.compiler.set_stance("force_eager"):  # what compiling itself would cost is not needed
        asked = [select_pairs(MORE, user, n=2, num_samples=4) for user in users]
    assert [question.number for question in asked[0]] == [question.number for question in asked[1]]


def test_a_fingerprint_is_the_same_where_latents_would_be(tmp_path):
    model, _ = build("policy", tmp_path / "model")
    expected = fingerprint(model)
    for name, value in {
        "attention_dropout": 0.5,
        "id2label": {0: "a label"},
        "initializer_range": 0.5,
        "output_hidden_states": True,
        "return_dict": False,
    }.items():
        setattr(model.config, name, value)
    model.config.context_config.dropout = 0.5
    assert fingerprint(model) == expected

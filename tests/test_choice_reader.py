"""The contract of models that read choices: policies and reward models keep the same laws."""

import pytest
import torch
from peft import LoraConfig

from np_trl import NPDPOTrainer
from np_trl.models import completion_log_probs
from np_trl.models.text_context import split_rows
from np_trl.users.choices import join_contexts, reverse
from np_trl.users.reference import reference_policy

from .test_profile import MORE, build
from .test_text_context import PAIRS
from .testing_utils import dpo_config, style_rows, tiny_base, tiny_policy, tiny_reward_model, tiny_tokenizer


QUESTIONS = [*PAIRS, *MORE]
EMBEDDED = [
    {"chosen_embeds": [1.0, 0, 0, 0, 0, 0], "rejected_embeds": [0.0] * 6},
    {"chosen_embeds": [0.0, 2, 0, 0, 0, 0], "rejected_embeds": [0.0, 0, 1, 0, 0, 0], "chosen_option_id": "a"},
]
MODELS = ["policy", "adapter", "reward", "embedded", "numbered", "mean-variance"]


def train_adapter(path):
    trainer = NPDPOTrainer(
        tiny_base(path / "base"),
        args=dpo_config(path / "run", beta=0.3),
        train_dataset=style_rows(),
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(r=4, target_modules=["q_proj"], layers_to_transform=[1, 2], init_lora_weights=False),
    )
    trainer.train()
    return trainer.model.eval()


@pytest.fixture(scope="module", params=MODELS)
def reader(request, tmp_path_factory):
    """A model, its tokenizer, and pairs that it reads."""
    kind, path = request.param, tmp_path_factory.mktemp("model")
    if kind == "adapter":
        return train_adapter(path), tiny_tokenizer(), QUESTIONS
    if kind in ("policy", "reward"):
        return *build(kind, path), QUESTIONS
    settings = {"numbered": {"option_ids": ["a", "b"]}, "mean-variance": {"head": "mean_variance"}}
    model = tiny_reward_model(**settings.get(kind, {})).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return model, None, EMBEDDED


def assert_same(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    for name, values in first.items():
        torch.testing.assert_close(values, second[name], rtol=1e-4, atol=1e-5)


def test_no_choices_are_the_reading_of_no_pairs(reader):
    model, tokenizer, pairs = reader
    assert_same(model.no_choices(), model.read_pairs([], tokenizer))
    assert not model.no_choices()["context_mask"].any()
    read = model.read_pairs(pairs, tokenizer)
    assert read.keys() == model.no_choices().keys()
    assert all(values.shape[:2] == (1, len(pairs)) for values in read.values())
    # the mask leaves the pair out: it may hold anything
    nobody = {**model.no_choices(), "context_embeds": read["context_embeds"][:, :1]}
    torch.testing.assert_close(model.infer_latents(**nobody), model.infer_user([], tokenizer))


def test_two_readings_join_to_the_reading_of_both(reader):
    model, tokenizer, pairs = reader
    apart = [model.read_pairs([pair], tokenizer) for pair in pairs[:2]]
    assert_same(join_contexts(apart, model.device), model.read_pairs(pairs[:2], tokenizer))


@torch.no_grad()
def test_an_answer_to_the_reversed_pair_has_the_opposite_sign(reader):
    model, tokenizer, pairs = reader
    reference, latents = reference_policy(model), model.infer_user(pairs[:1], tokenizer)
    ways = (pairs, [reverse(pair) for pair in pairs])
    questions = [model.read_questions(way, tokenizer, reference) for way in ways]
    forth, back = (model.answer_logits(latents, read) for read in questions)
    assert forth.shape == (len(pairs),) and forth.abs().max() > 1e-4
    torch.testing.assert_close(forth, -back, rtol=1e-3, atol=1e-5)


@torch.no_grad()
def test_answers_are_the_same_one_by_one_and_crossed(reader):
    model, tokenizer, pairs = reader
    latents = torch.cat([model.infer_user(pairs[:number], tokenizer) for number in range(2)])  # (2, Z)
    questions = model.read_questions(pairs, tokenizer, reference_policy(model))
    crossed = model.answer_logits(latents.unsqueeze(1), questions)  # (2, P)
    assert crossed.shape == (2, len(pairs)) and not torch.allclose(crossed[0], crossed[1])
    numbers = torch.tensor([1, 0])
    each = model.answer_logits(latents, questions, numbers)
    torch.testing.assert_close(each, torch.stack([crossed[0, 1], crossed[1, 0]]), rtol=1e-3, atol=1e-5)
    some = model.answer_logits(latents.unsqueeze(1), questions, numbers)
    torch.testing.assert_close(some, crossed[:, [1, 0]], rtol=1e-3, atol=1e-5)


@torch.no_grad()
def test_answers_are_the_margins_of_the_loss(reader):
    model, tokenizer, pairs = reader
    latents = model.infer_user(pairs[:1], tokenizer)
    answers = model.answer_logits(latents, model.read_questions(pairs, tokenizer, reference_policy(model)))
    for pair, answer in zip(pairs, answers, strict=True):
        if tokenizer is None:
            read = model.read_pairs([pair])
            options, ids = read["context_embeds"][0, 0], read["context_option_ids"][0, 0]
            outputs = model(options, latents=latents, context_index=torch.tensor([0, 0]), option_ids=ids)
            expected = model.choice_logits(outputs)[0]
        else:
            expected = implicit_margin(model, tokenizer, pair, latents)
        torch.testing.assert_close(answer, expected, rtol=1e-3, atol=1e-4)


def implicit_margin(policy, tokenizer, pair: dict, latents: torch.Tensor) -> torch.Tensor:
    """The difference of the implicit rewards of DPO, of one sequence after another."""

    def log_prob(model, text: str, **users) -> torch.Tensor:
        start = len(tokenizer(pair["prompt"])["input_ids"])
        tokens = torch.tensor([tokenizer(pair["prompt"] + text + tokenizer.eos_token)["input_ids"]])
        log_probs = model(tokens, **users).logits[0, :-1].log_softmax(dim=-1)
        return log_probs.gather(1, tokens[0, 1:, None])[start - 1 :].sum()

    reference, rewards = reference_policy(policy), []
    for side in ("chosen", "rejected"):
        ratio = log_prob(policy, pair[side], latents=latents) - log_prob(reference, pair[side])
        rewards.append(policy.config.dpo_beta * ratio)
    return rewards[0] - rewards[1]


@torch.no_grad()
def test_answers_do_not_depend_on_how_many_rows_are_run_at_once(tmp_path, monkeypatch):
    policy, tokenizer = tiny_policy(tmp_path), tiny_tokenizer()
    latents = policy.infer_user(PAIRS, tokenizer)
    expected = policy.answer_logits(latents, policy.read_questions(QUESTIONS, tokenizer))
    lengths, forward = [], policy.forward
    monkeypatch.setattr(
        policy, "forward", lambda input_ids, **kwargs: lengths.append(len(input_ids)) or forward(input_ids, **kwargs)
    )
    monkeypatch.setattr(completion_log_probs, "MAX_LOGITS", 40 * policy.config.vocab_size)
    answers = policy.answer_logits(latents, policy.read_questions(QUESTIONS, tokenizer))
    torch.testing.assert_close(answers, expected, rtol=1e-3, atol=1e-5)
    assert max(lengths) <= 2


def test_batches_of_rows_are_no_longer_than_their_longest_row():
    mask = (torch.arange(6) < torch.tensor([[2], [3], [6]])).long()
    first, second = split_rows({"input_ids": mask * 7, "attention_mask": mask}, batch_size=2)
    assert first["input_ids"].shape == (2, 3) and second["attention_mask"].shape == (1, 6)
    assert sum(int(batch["input_ids"].sum()) for batch in (first, second)) == 7 * int(mask.sum())


def test_pairs_of_two_kinds_and_models_without_users_are_refused(tmp_path):
    model, tokenizer = build("policy", tmp_path / "model")
    embedded = {"chosen_embeds": [1.0] * 32, "rejected_embeds": [0.0] * 32}
    with pytest.raises(ValueError, match="Pair 1 is given by embeddings, but the first pair by texts"):
        model.read_pairs([PAIRS[0], embedded], tokenizer)
    with pytest.raises(ValueError, match=r"Pair 1 has no \['chosen_embeds', 'rejected_embeds'\]"):
        model.read_pairs([embedded, PAIRS[0]], tokenizer)
    with pytest.raises(ValueError, match="Pair 0 has no"):  # a policy answers in tokens
        model.read_questions([embedded], tokenizer)
    population = tiny_reward_model(conditional=False)
    for method in (population.no_choices, lambda: population.read_pairs([]), lambda: population.infer_user(EMBEDDED)):
        with pytest.raises(ValueError, match="`conditional=False`: it knows no users"):
            method()

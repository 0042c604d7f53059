"""The next question: what telling answers are, and that two of them find a user for whom random ones need ten."""

import logging
from itertools import product
from math import log

import numpy as np
import pytest
import torch
from peft import LoraConfig

from np_trl import NPDPOTrainer, NPRewardTrainer, QuestionPool, UserProfile, sample_latents, select_pairs
from np_trl.populations.correlated import correlated_population
from np_trl.users import Question
from np_trl.users.choices import reverse
from np_trl.users.selection import NO_GAIN, most_telling

from .test_profile import MORE, build, build_policy, profile
from .test_text_context import PAIRS
from .testing_utils import (
    dpo_config,
    reward_config,
    style_rows,
    tiny_base,
    tiny_policy,
    tiny_reward_model,
    tiny_tokenizer,
)


TWO_KINDS = {"embed_size": 2, "hidden_size": 32}
CONTEXT = {"embed_size": 2, "hidden_size": 32, "latent_size": 24, "memory_size": 8}


def train_two_kinds(path, **context):
    """NP-BTL on Example 4.3, whose users are of two kinds; one pair in four tells them apart."""
    torch.manual_seed(0)
    model = tiny_reward_model(**TWO_KINDS, context_config={**CONTEXT, **context})
    args = reward_config(
        path,
        max_steps=150,
        per_device_train_batch_size=64,
        num_targets=20,
        max_context=10,
        context_in_target=False,
        learning_rate=3e-3,
        logging_steps=50,
    )
    NPRewardTrainer(model, args=args, train_dataset=correlated_population(1000, 40, 0.7)).train()
    return model.eval()


@pytest.fixture(scope="module")
def two_kinds(tmp_path_factory):
    return train_two_kinds(tmp_path_factory.mktemp("two_kinds"))


def pairs_of(num_users: int, pairs_per_user: int, correlation: float, seed: int) -> list[list[dict]]:
    rows = correlated_population(num_users, pairs_per_user, correlation, seed).to_list()
    pairs = [{name: row[name] for name in ("chosen_embeds", "rejected_embeds")} for row in rows]
    return [pairs[start : start + pairs_per_user] for start in range(0, len(pairs), pairs_per_user)]


def numbers_of(selected: list[tuple[int, float]]) -> list[int]:
    return [number for number, _ in selected]


def asked_by(*args, **kwargs) -> list[int]:
    """The numbers of the questions that are selected."""
    return [question.number for question in select_pairs(*args, **kwargs)]


def test_a_question_tells_much_if_users_would_surely_answer_differently():
    agreed, noise, split = torch.full((8,), 0.99), torch.full((8,), 0.5), torch.tensor([0.9, 0.1] * 4)
    assert numbers_of(most_telling(torch.stack([agreed, noise, split], dim=1), 3)) == [2, 0, 1]


def test_a_batch_does_not_ask_the_same_thing_twice():
    first, second = torch.tensor([0.95, 0.95, 0.05, 0.05]), torch.tensor([0.9, 0.1, 0.9, 0.1])
    probs = torch.stack([first, first, 1 - first, second], dim=1)
    assert numbers_of(most_telling(probs, 2)) == [0, 3]


def test_batches_with_more_joint_answers_than_are_enumerated_are_as_good():
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(0, 2, (64, 6), generator=generator)
    independent = 0.05 + 0.9 * bits  # six questions that tell most, and six that repeat the first
    probs = torch.cat([independent, independent[:, :1].expand(-1, 6) * 0.98], dim=1).double()
    selected = numbers_of(most_telling(probs, 12, generator))
    assert sorted(selected[:6]) == list(range(6)) and sorted(selected) == list(range(12))


def entropy(probs: torch.Tensor) -> torch.Tensor:
    return torch.special.entr(probs).sum(dim=-1)


def mutual_information(probs: torch.Tensor, numbers: list[int]) -> float:
    """That of the joint answers to questions with the user, by enumeration; `probs` are `(S, P)`."""
    chosen = probs[:, numbers]  # (S, n)
    joint = [
        torch.where(torch.tensor(outcome), chosen, 1 - chosen).prod(dim=1)
        for outcome in product([True, False], repeat=len(numbers))
    ]
    joint = torch.stack(joint, dim=1)  # (S, 2^n)
    return float(entropy(joint.mean(dim=0)) - entropy(joint).mean())


def test_gains_are_the_mutual_information_and_add_up_to_that_of_all_answers():
    probs = torch.rand(32, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    selected = most_telling(probs, 6)
    numbers, gains = numbers_of(selected), [gain for _, gain in selected]
    assert gains[0] == pytest.approx(max(mutual_information(probs, [number]) for number in range(8)), abs=1e-12)
    for count in range(1, 7):
        assert sum(gains[:count]) == pytest.approx(mutual_information(probs, numbers[:count]), abs=1e-12)
    sure = torch.tensor([1.0, 0.0] * 4, dtype=torch.float64)
    (first, second) = most_telling(torch.stack([sure, sure], dim=1), 2)
    assert first[1] == pytest.approx(log(2)) and second[1] == pytest.approx(0, abs=1e-12)  # the same question again


def test_no_gain_is_negative_also_where_joint_answers_are_drawn():
    generator = torch.Generator().manual_seed(0)
    probs = torch.rand(16, 20, generator=generator, dtype=torch.float64)
    gains = [gain for _, gain in most_telling(probs, 20, generator)]
    assert min(gains) > -1e-12
    assert gains[:10] == sorted(gains[:10], reverse=True)  # of joint answers that are enumerated: submodular
    assert sum(gains) <= log(16) + 0.05  # in all no more than which of 16 users it is


def test_users_who_agree_but_for_rounding_leave_nothing_to_gain(tmp_path):
    policy, tokenizer = build("policy", tmp_path)
    user, questions = profile(policy, tokenizer, *PAIRS), [*PAIRS, *MORE]
    logits = QuestionPool(questions, policy, tokenizer).cross_logits(user.latents.expand(64, -1), torch.arange(4))
    noisy = logits + 1e-5 * torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    for values in (logits, noisy):
        gains = [gain for _, gain in most_telling(values.double().sigmoid(), 4)]
        assert -1e-12 < min(gains) and max(gains) < 1e-10 < NO_GAIN


def test_it_is_said_once_when_nothing_is_left_to_gain(two_kinds, monkeypatch, caplog):
    (asked,) = pairs_of(1, 6, 0.7, seed=11)
    (question,) = select_pairs(asked, UserProfile(two_kinds))
    assert question.gain > 0.1 and not caplog.records
    known = UserProfile(two_kinds).latents
    monkeypatch.setattr(two_kinds, "infer_latents", lambda context_embeds, **_: known.expand(len(context_embeds), -1))
    questions = select_pairs(asked, UserProfile(two_kinds), n=3)
    assert all(abs(question.gain) < NO_GAIN for question in questions)
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    numbers = [question.number for question in questions]
    assert (
        f"Nothing is left to gain from 3 of 3 questions selected, those with the numbers {numbers}" in record.message
    )


def test_two_chosen_answers_find_a_user_for_whom_random_ones_need_ten(two_kinds):
    wrong = {"chosen": [], "random": []}
    people = zip(pairs_of(60, 40, 0.7, seed=1), pairs_of(60, 20, -1.0, seed=2), strict=True)
    for number, (asked, targets) in enumerate(people):
        questions, targets = QuestionPool(asked, two_kinds), QuestionPool(targets, two_kinds)
        for way in wrong:
            user = UserProfile(two_kinds)
            for answer in range(2):
                (question,) = asked_by(questions, user, seed=number) if way == "chosen" else [answer]
                user.add(asked[question])
            wrong[way].append(float(targets.cross_logits(user.latents, torch.arange(20)).sum() <= 0))
    assert np.mean(wrong["chosen"]) < 0.03
    assert np.mean(wrong["random"]) > 0.15  # 0.28 in the limit


def test_the_answers_of_a_batch_find_a_user(two_kinds):
    wrong = []
    for asked, targets in zip(pairs_of(30, 40, 0.7, seed=3), pairs_of(30, 20, -1.0, seed=4), strict=True):
        user = UserProfile(two_kinds)
        user.add(*[question.pair for question in select_pairs(asked, user, n=3)])
        assert len(user) == 3
        wrong.append(float(QuestionPool(targets, two_kinds).cross_logits(user.latents, torch.arange(20)).sum() <= 0))
    assert np.mean(wrong) < 0.04


def test_which_option_is_called_chosen_gives_nothing_away(two_kinds):
    for asked in pairs_of(10, 30, 0.7, seed=5):
        swapped = [reverse(pair) if number % 2 else pair for number, pair in enumerate(asked)]
        user = profile(two_kinds, None, asked[0])
        torch.testing.assert_close(sample_latents(user, 16, swapped), sample_latents(user, 16, asked))
        assert asked_by(swapped, user, n=3) == asked_by(asked, user, n=3)
    pool = QuestionPool([asked[1], reverse(asked[1])], two_kinds)
    first, second = pool.cross_logits(user.latents, torch.arange(2))[0]
    torch.testing.assert_close(first, -second)


def test_a_selected_question_is_a_pair_of_the_pool(two_kinds):
    pairs = pairs_of(1, 4, correlation=0.0, seed=1)[0]
    pool = QuestionPool(pairs, two_kinds)
    (question,) = select_pairs(pool, UserProfile(two_kinds))
    assert question.pair is pool[question.number] is pairs[question.number] and len(list(pool)) == len(pool) == 4
    assert {question: question.gain} == {Question(question.number, {}, question.gain): question.gain}


def test_no_question_is_asked_twice(two_kinds):
    (asked,) = pairs_of(1, 4, 0.7, seed=6)
    user = profile(two_kinds, None, asked[2], reverse(asked[0]))
    assert sorted(asked_by(asked, user, n=2)) == [1, 3]
    for n in (0, 3):
        with pytest.raises(ValueError, match=f"`n={n}`, but 2 of the 4 pairs of the pool are open"):
            select_pairs(asked, user, n)
    user.add(asked[1], asked[3])
    with pytest.raises(ValueError, match="The user has answered all 4 pairs of the pool"):
        sample_latents(user, pool=asked)


def test_pools_without_pairs_or_of_another_model_are_refused(tmp_path, two_kinds):
    (asked,) = pairs_of(1, 4, 0.7, seed=7)
    with pytest.raises(ValueError, match="The pool is empty"):
        QuestionPool([], two_kinds)
    with pytest.raises(ValueError, match=r"Pair 1 has no \['rejected_embeds'\]"):
        QuestionPool([asked[0], {"chosen_embeds": [0.0, 1.0]}], two_kinds)
    other = tiny_reward_model(**TWO_KINDS, context_config=CONTEXT).eval()
    with pytest.raises(ValueError, match="read by another model"):
        select_pairs(QuestionPool(asked, two_kinds), UserProfile(other))
    embedded = [{"chosen_embeds": torch.ones(32), "rejected_embeds": torch.zeros(32)}]
    policy = build_policy(tmp_path)
    with pytest.raises(ValueError, match="Pair 0 has no"):
        QuestionPool(embedded, policy, tiny_tokenizer())


def test_answers_narrow_down_what_is_open(two_kinds):
    (asked,) = pairs_of(1, 40, 0.7, seed=8)
    pool, user = QuestionPool(asked, two_kinds), UserProfile(two_kinds)
    before = user.uncertainty(pool)
    assert before.shape == (1, 24)
    user.add(*[question.pair for question in select_pairs(pool, user, n=5)])
    assert user.uncertainty(pool).mean() < 0.8 * before.mean()
    drawn = sample_latents(user, 16, pool, seed=1)
    assert drawn.shape == (16, 24) and drawn.equal(sample_latents(user, 16, asked, seed=1))
    assert not drawn.equal(sample_latents(user, 16, pool, seed=2))
    with pytest.raises(ValueError, match="a latent that is a point. Pass `pool`"):
        user.uncertainty()


def test_normal_latents_are_drawn_from_their_moments():
    context = {**CONTEXT, "latent_distribution": "gaussian"}
    model = tiny_reward_model(**TWO_KINDS, context_config=context).eval()
    user = profile(model, None, *pairs_of(1, 3, 0.7, seed=9)[0])
    std = user.uncertainty()
    assert (std[:, :16] > 0).all() and (std[:, 16:] == 0).all()  # the memory is no random variable
    drawn = sample_latents(user, 20_000)
    torch.testing.assert_close(drawn.mean(dim=0, keepdim=True), user.latents, atol=0.05, rtol=0.05)
    torch.testing.assert_close(drawn.std(dim=0, keepdim=True), std, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("adapter", [False, True])
def test_a_policy_answers_by_its_implicit_reward(tmp_path, adapter):
    if adapter:
        args = dpo_config(tmp_path / "run", beta=0.3)
        trainer = NPDPOTrainer(
            tiny_base(tmp_path / "base"),
            args=args,
            train_dataset=style_rows(),
            processing_class=tiny_tokenizer(),
            peft_config=LoraConfig(r=4, target_modules=["q_proj"], layers_to_transform=[1], init_lora_weights=False),
        )
        trainer.train()
        policy = trainer.model.eval()
    else:
        policy = tiny_policy(tmp_path / "policy", dpo_beta=0.3)
    tokenizer, pair = tiny_tokenizer(), PAIRS[0]
    user = profile(policy, tokenizer, *MORE)
    pool = QuestionPool([PAIRS[1], pair], policy, tokenizer)

    def log_prob(text: str, **users) -> torch.Tensor:
        start = len(tokenizer(pair["prompt"])["input_ids"])
        tokens = torch.tensor([tokenizer(pair["prompt"] + text + tokenizer.eos_token)["input_ids"]])
        log_probs = policy(tokens, **users).logits[0, :-1].log_softmax(dim=-1)
        return log_probs.gather(1, tokens[0, 1:, None])[start - 1 :].sum()

    with torch.no_grad():
        margin = log_prob(pair["chosen"], latents=user.latents) - log_prob(pair["rejected"], latents=user.latents)
        if adapter:
            with policy.disable_adapter():
                reference = log_prob(pair["chosen"]) - log_prob(pair["rejected"])
        else:
            reference = log_prob(pair["chosen"]) - log_prob(pair["rejected"])
    assert margin != reference
    expected = 0.3 * (margin - reference)
    torch.testing.assert_close(pool.logits(user.latents, torch.tensor([1]))[0], expected, rtol=1e-3, atol=1e-4)
    crossed = pool.cross_logits(torch.cat([user.latents, user.latents + 1]), torch.arange(2))
    torch.testing.assert_close(crossed[0, 1], expected, rtol=1e-3, atol=1e-4)
    assert crossed.shape == (2, 2) and not torch.allclose(crossed[0], crossed[1])


@pytest.mark.parametrize("kind", ["policy", "reward"])
def test_questions_may_be_texts(tmp_path, kind):
    model, tokenizer = build(kind, tmp_path / "model")
    user = profile(model, tokenizer, PAIRS[0])
    questions = [*PAIRS, *MORE]
    selected = asked_by(questions, user, n=2, num_samples=8)
    assert len(set(selected)) == 2 and 0 not in selected
    assert user.uncertainty(questions, num_samples=8).isfinite().all()
    imagined = QuestionPool(questions, model, tokenizer).answers(torch.tensor([1]), torch.tensor([True]))
    torch.testing.assert_close(
        imagined["context_embeds"], profile(model, tokenizer, questions[1]).context_set["context_embeds"]
    )


def test_options_known_by_a_number_are_known_beside_their_embeddings():
    model = tiny_reward_model(option_ids=["a", "b"]).eval()
    torch.nn.init.normal_(model.option_vectors.weight)
    embeds = {"chosen_embeds": torch.zeros(6), "rejected_embeds": torch.ones(6)}
    pair = {**embeds, "chosen_option_id": "a", "rejected_option_id": "new"}
    assert profile(model, None, pair).context_set["context_option_ids"].tolist() == [[[1, 0]]]
    latents = profile(model, None, pair).latents
    known, unknown = (QuestionPool([row], model).cross_logits(latents, torch.arange(1)) for row in (pair, embeds))
    assert reverse(pair)["rejected_option_id"] == "a"
    assert known.shape == (1, 1) and not torch.allclose(known, unknown)


def test_what_is_imagined_of_a_user_without_choices_knows_options_by_a_number():
    model = tiny_reward_model(option_ids=["a", "b"]).eval()
    torch.nn.init.normal_(model.option_vectors.weight, std=3)
    embeds = {
        "chosen_embeds": torch.zeros(6),
        "rejected_embeds": torch.zeros(6),
    }  # which differ by their numbers alone
    pool = [{**embeds, "chosen_option_id": "a", "rejected_option_id": "b"}, {**embeds, "chosen_option_id": "b"}]
    assert UserProfile(model).uncertainty(pool).max() > 0.1
    user = profile(model, None, pool[0])
    assert pool[1] not in user and asked_by(pool, user) == [1]


@pytest.mark.parametrize("numbers", [{"num_samples": 1}, {"num_imagined": 0}])
def test_numbers_that_leave_nothing_to_compare_are_refused(two_kinds, numbers):
    (asked,) = pairs_of(1, 4, 0.7, seed=10)
    (name,) = numbers
    with pytest.raises(ValueError, match=f"`{name}={numbers[name]}` must be at least"):
        select_pairs(asked, UserProfile(two_kinds), **numbers)

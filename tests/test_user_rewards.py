"""A user's reward model at work: the best of n, and TRL's GRPO and RLOO trainers on its rewards."""

import json
import math
import pickle
import re
import runpy

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, set_seed
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from np_trl import NPRewardModel
from np_trl.populations.style import STYLES, split_prompts
from np_trl.populations.style_grammar import detect_attributes, is_grammatical
from np_trl.users import UserProfile, UserReward, best_of_n
from np_trl.users.choices import reverse

from .test_examples import EXAMPLES, results, run
from .test_text_context import chat_tokenizer
from .test_text_embedder import tiny_bert
from .testing_utils import CONTEXT_CONFIG, STYLE_GEMMA, tiny_base, tiny_reward_model, tiny_tokenizer


PAIRS = [
    {"prompt": "a", "chosen": "take it slow", "rejected": "ask a buddy"},
    {"prompt": "a", "chosen": "it goes slow", "rejected": "a buddy goes"},
]
PROMPTS = ["so", "a"]
CANDIDATES = [["take it slow", "ask a buddy", "so it goes"], ["ask", "slow"]]
MODES = {"grpo": (GRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}


def build_model(path, **kwargs):
    embedder = {"name_or_path": tiny_bert(path), "kind": "prompt_response"}
    return tiny_reward_model(embedder=embedder, **kwargs)


@pytest.fixture
def model(tmp_path):
    return build_model(tmp_path / "bert").eval()


def profile(model, *pairs: dict) -> UserProfile:
    user = UserProfile(model)
    user.add(*pairs)
    return user


def opposites(model) -> tuple[UserProfile, UserProfile]:
    return profile(model, *PAIRS), profile(model, *map(reverse, PAIRS))


def rewards_alone(model, user) -> list[torch.Tensor]:
    """The rewards of the candidates of each prompt, scored by themselves."""
    return [
        model.score([{"prompt": prompt, "completion": text} for text in texts], users=[user])
        for prompt, texts in zip(PROMPTS, CANDIDATES, strict=True)
    ]


def flat() -> tuple[list[str], list[str]]:
    """The candidates as TRL hands them over: a prompt for each."""
    rows = [(prompt, text) for prompt, texts in zip(PROMPTS, CANDIDATES, strict=True) for text in texts]
    prompts, completions = zip(*rows, strict=True)
    return list(prompts), list(completions)


def as_messages(role: str, text: str) -> list[dict]:
    return [{"role": role, "content": text}]


def test_the_pick_has_the_highest_reward_for_its_user(model):
    ada, bob = opposites(model)
    for user in (ada, bob, ada.latents):
        expected = [
            texts[int(rewards.argmax())] for texts, rewards in zip(CANDIDATES, rewards_alone(model, user), strict=True)
        ]
        assert best_of_n(model, PROMPTS, CANDIDATES, user) == expected
    # a user for each prompt
    picks = {name: best_of_n(model, PROMPTS, CANDIDATES, user) for name, user in {"ada": ada, "bob": bob}.items()}
    assert picks["ada"] != picks["bob"]
    assert best_of_n(model, PROMPTS, CANDIDATES, [ada, bob]) == [picks["ada"][0], picks["bob"][1]]


def test_conversations_are_picked_as_their_texts_are(model):
    ada, _ = opposites(model)
    prompts = [as_messages("user", prompt) for prompt in PROMPTS]
    candidates = [[as_messages("assistant", text) for text in texts] for texts in CANDIDATES]
    picks = [pick[0]["content"] for pick in best_of_n(model, prompts, candidates, ada)]
    assert picks == best_of_n(model, PROMPTS, CANDIDATES, ada)


def test_candidates_and_users_belong_to_prompts(model):
    ada, bob = opposites(model)
    with pytest.raises(ValueError, match="`candidates` has 1 entries for 2 `prompts`"):
        best_of_n(model, PROMPTS, CANDIDATES[:1], ada)
    with pytest.raises(ValueError, match="`users` has 3 entries for 2 `prompts`"):
        best_of_n(model, PROMPTS, CANDIDATES, [ada, bob, ada])
    for wrong in ([], "take it slow", as_messages("assistant", "take it slow")):
        with pytest.raises(ValueError, match=r"`candidates\[1\]` is .*Give a list of one completion or more"):
            best_of_n(model, PROMPTS, [["a"], wrong], ada)
    other = tiny_reward_model(embedder=model.config.embedder, context_config={**CONTEXT_CONFIG, "hidden_size": 8})
    stranger = UserProfile(other)
    with pytest.raises(ValueError, match=r"`users\[1\]` is of another model"):
        best_of_n(model, PROMPTS, CANDIDATES, [ada, stranger])
    with pytest.raises(ValueError, match="The user is of another model"):
        UserReward(model, stranger)
    with pytest.raises(ValueError, match=r"`users\['s'\]` is of another model"):
        UserReward(model, {"s": stranger})


def test_the_reward_function_scores_each_row_for_its_user(model):
    ada, bob = opposites(model)
    prompts, completions = flat()
    of_ada, of_bob = (torch.cat(rewards_alone(model, user)) for user in (ada, bob))
    rewards = UserReward(model, ada)(prompts=prompts, completions=completions, completion_ids=[[3]] * 5)
    torch.testing.assert_close(torch.tensor(rewards), of_ada)
    user_ids = ["ada", "bob", "bob", "ada", "bob"]
    of_both = UserReward(model, {"ada": ada, "bob": bob.latents, "carl": UserProfile(model)})
    rewards = of_both(prompts=prompts, completions=completions, user_id=user_ids, trainer_state=None)
    is_ada = torch.tensor([user_id == "ada" for user_id in user_ids])
    torch.testing.assert_close(torch.tensor(rewards), torch.where(is_ada, of_ada, of_bob))
    assert (of_ada - of_bob).abs().min() > 1e-4


def test_conversations_are_scored_as_their_texts_are(model):
    reward, (prompts, completions) = UserReward(model, profile(model, *PAIRS)), flat()
    conversations = {
        "prompts": [as_messages("user", prompt) for prompt in prompts],
        "completions": [as_messages("assistant", text) for text in completions],
    }
    torch.testing.assert_close(reward(**conversations), reward(prompts, completions))


def test_latents_are_inferred_once_until_choices_change(model, monkeypatch):
    ada, (prompts, completions), calls, infer = profile(model, PAIRS[0]), flat(), [], model.infer_latents
    monkeypatch.setattr(model, "infer_latents", lambda **context: calls.append(1) or infer(**context))
    reward = UserReward(model, ada)
    first = reward(prompts, completions)
    assert reward(prompts, completions) == first and len(calls) == 1
    ada.add(PAIRS[1])
    assert reward(prompts, completions) != first
    ada.remove(PAIRS[1])
    assert reward(prompts, completions) == first and len(calls) == 3


def test_dropout_does_not_reach_rewards(tmp_path):
    model = build_model(tmp_path / "bert", dropout=0.5).train()
    reward, (prompts, completions) = UserReward(model, UserProfile(model)), flat()
    assert reward(prompts, completions) == reward(prompts, completions)


def test_a_reward_function_can_be_sent_to_another_process(model):
    reward, (prompts, completions) = UserReward(model, profile(model, *PAIRS)), flat()
    assert pickle.loads(pickle.dumps(reward))(prompts, completions) == reward(prompts, completions)


def test_unknown_users_are_named(model):
    reward = UserReward(model, {"ada": UserProfile(model)})
    with pytest.raises(ValueError, match="no column `user_id`"):
        reward(["a"], ["slow"])
    with pytest.raises(ValueError, match="has the `user_id` 7, but `users` does not: it has 1, such as 'ada'"):
        reward(["a", "a"], ["slow", "so"], user_id=["ada", 7])
    with pytest.raises(ValueError, match="`users` is empty"):
        UserReward(model, {})


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("conversational", [False, True])
def test_trl_trains_a_policy_on_the_reward(tmp_path, model, mode, conversational):
    trainer_class, config_class = MODES[mode]
    ada, bob = opposites(model)
    rows = [{"prompt": f"How do I fix the {noun}?", "user_id": f"{noun}'s"} for noun in ("bike", "lamp")]
    if conversational:
        rows = [{**row, "prompt": as_messages("user", row["prompt"])} for row in rows]
    base = tiny_base(tmp_path / "base")
    args = config_class(
        str(tmp_path / "out"),
        max_steps=2,
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=6,
        learning_rate=1e-3,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
    )
    reward = UserReward(model, {"bike's": ada, "lamp's": bob}, name="liked")
    trainer = trainer_class(
        base,
        reward_funcs=reward,
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=chat_tokenizer() if conversational else tiny_tokenizer(),
    )
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "rewards/liked/mean" in entry]
    assert len(logged) == 2
    assert all(math.isfinite(entry["rewards/liked/mean"]) for entry in logged)
    assert all(entry["rewards/liked/std"] > 0 for entry in logged)
    before, after = AutoModelForCausalLM.from_pretrained(base).state_dict(), trainer.model.state_dict()
    assert not any(torch.equal(before[name], after[name]) for name in before if "q_proj" in name)


def answers_printed(printed: str, heading: str) -> list[str]:
    """The answers under each of these headings, which are printed four columns in, the first line with its own blank."""
    found = re.findall(rf"^{re.escape(heading)}\n((?:    .*\n)+)", printed, re.M)
    return [" " + text.removesuffix("\n").replace("\n    ", "\n").removeprefix("    ") for text in found]


def write_candidates(prompt: str, number: int) -> list[str]:
    """Sample answers of the tiny Gemma from seed 0."""
    tokenizer, model = tiny_tokenizer(), AutoModelForCausalLM.from_pretrained(STYLE_GEMMA).eval()
    inputs = tokenizer(prompt, return_tensors="pt")
    set_seed(0)
    outputs = model.generate(**inputs, do_sample=True, max_new_tokens=64, num_return_sequences=number)
    return tokenizer.batch_decode(outputs[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_the_examples_train_on_and_pick_by_the_rewards_of_a_user(tmp_path):
    config = ["--config", EXAMPLES / "configs" / "grpo_style.yaml"]
    small = "--num_threads 1 --num_train_users 16 --reward_steps 20 --num_answers 2 --num_candidates 4".split()
    small += "--max_steps 2 --per_device_train_batch_size 4 --num_generations 2 --output_dir out".split()
    printed = run("grpo.py", *config, *small, cwd=tmp_path)
    metrics = results(tmp_path / "out")
    prompts = split_prompts()[1][:2]  # all that are answered are printed
    for name in ("base model", "best of 4", "GRPO"):
        texts = answers_printed(printed, f"  {name}:")
        key = f"eval_{name.lower().replace(' ', '_')}"
        wanted = np.array([detect_attributes(text) for text in texts]) == np.array(STYLES[10])
        assert metrics[f"{key}_as_wanted"] == wanted.mean(), name
        grammatical = [is_grammatical(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
        assert metrics[f"{key}_grammatical"] == np.mean(grammatical), name
    assert metrics["eval_best_of_4_reward"] > metrics["eval_base_model_reward"]
    # one's own prompts, reward model and user; the best of n for two users
    reward_model, users = tmp_path / "out" / "np_reward", sorted((EXAMPLES / "users").glob("*.json"))
    (tmp_path / "prompts.csv").write_text("prompt\nHow do I fix the bike?\nHow do I fix the lamp?\n")
    own = ["--dataset_name", "prompts.csv", "--reward_model_name_or_path", reward_model, "--user", users[0]]
    assert "Policy: out" in run("grpo.py", *config, *small, *own, cwd=tmp_path)
    picks = ["--reward_model_name_or_path", reward_model, "--users", *users, "--num_candidates", 16]
    printed = run("best_of_n.py", *picks, "--prompts", "How do I fix the bike?", cwd=tmp_path)
    texts, model = write_candidates("How do I fix the bike?", 16), NPRewardModel.from_pretrained(reward_model)
    best = []
    for user in users:
        choices = UserProfile(model, pairs=json.loads(user.read_text())["pairs"])
        options = [{"prompt": "How do I fix the bike?", "completion": text} for text in texts]
        best.append(texts[int(model.score(options, users=[choices]).argmax())])
        assert answers_printed(printed, f"  for {user.stem}:") == best[-1:]
    assert best[0] != best[1]


def test_what_the_example_cannot_combine_is_named():
    arguments = runpy.run_path(str(EXAMPLES / "grpo.py"), run_name="grpo")["ScriptArguments"]
    with pytest.raises(ValueError, match="`dataset_name='prompts.csv'` needs `user` and `reward_model_name_or_path`"):
        arguments(dataset_name="prompts.csv", user="user.json")
    with pytest.raises(ValueError, match="`user='user.json'` goes with a `dataset_name`"):
        arguments(user="user.json")
    with pytest.raises(ValueError, match="`user_number=16` must be at least 0 and less than 16"):
        arguments(user_number=16)


def test_rewards_of_one_run_never_share_a_name(model):
    ada, bob = opposites(model)
    users = [ada, bob, ada.latents, {"a": ada, "b": bob}, {"a": bob, "b": ada}]
    names = [UserReward(model, user).__name__ for user in users]
    assert names[0] == names[2] and len(set(names)) == len(users) - 1  # a profile and its latent are one user
    assert all(name.startswith("user_reward_") for name in names)

"""A user's reward model at work on what any language model writes: the best of n, and the reward of GRPO and RLOO."""

import hashlib

import torch

from np_trl.users.fingerprint import fingerprint
from np_trl.users.profile import UserProfile


Text = str | list[dict]  # a string, or a conversation
User = UserProfile | torch.Tensor


def best_of_n(reward_model, prompts: list[Text], candidates: list[list[Text]], users: User | list[User]) -> list[Text]:
    """
    Pick, for each prompt, the candidate that its user likes best.

    Args:
        reward_model ([`NPRewardModel`]):
            A reward model that scores texts, in evaluation mode.
        prompts (`list`):
            P prompts: strings, or conversations (lists of messages).
        candidates (`list[list]`):
            For each prompt its candidates: one or more completions, strings or conversations, from any language model.
        users ([`UserProfile`], `torch.Tensor` of shape `(1, Z)`, or a `list` of P of them):
            The user of all prompts, or that of each: profiles of the reward model, or latents that it inferred.

    Returns:
        `list`: for each of the P prompts the candidate with the highest reward; of equals the first.

    Raises:
        `ValueError`: if not every prompt has candidates and a user, or a profile is of another model.

    Example:
    ```python
    >>> ada = UserProfile(reward_model)
    >>> ada.add({"prompt": "How do I fix the bike?", "chosen": " take it slow", "rejected": " ask a buddy"})
    >>> best_of_n(reward_model, ["How do I fix the lamp?"], [[" go slowly", " call a friend"]], ada)
    ```
    """
    for name, values in {"prompts": prompts, "candidates": candidates}.items():
        if not isinstance(values, list):
            raise ValueError(f"`{name}` is a {type(values).__name__}, but must be a list: an entry for each prompt.")
    users = users if isinstance(users, list) else [users] * len(prompts)
    for name, values in {"candidates": candidates, "users": users}.items():
        if len(values) != len(prompts):
            raise ValueError(f"`{name}` has {len(values)} entries for {len(prompts)} `prompts`. Give one for each.")
    options, users_of_options = [], []
    for row, texts in enumerate(candidates):
        if not isinstance(texts, list) or not texts or isinstance(texts[0], dict):  # a completion itself, or none
            raise ValueError(f"`candidates[{row}]` is {str(texts)[:60]!r}. Give a list of one completion or more.")
        _check_user(users[row], reward_model, f"`users[{row}]`")
        options += [{"prompt": prompts[row], "completion": text} for text in texts]
        users_of_options += [users[row]] * len(texts)
    if not prompts:
        return []
    rewards = _score(reward_model, options, users_of_options)  # (N,)
    of_prompts = rewards.split([len(texts) for texts in candidates])
    return [texts[int(scores.argmax())] for texts, scores in zip(candidates, of_prompts, strict=True)]


class UserReward:
    """
    What one user, or each of many, likes, as a reward function of TRL: `reward_funcs` of [`~trl.GRPOTrainer`] and
    [`~trl.RLOOTrainer`].

    Only differences of rewards between completions of one prompt for one user mean anything. Both trainers compare just
    these, so nothing is subtracted here. It follows that the level of the logged rewards says nothing, its rise in training
    does; and that `reward_clip_range` of RLOO and `scale_rewards="batch"` of GRPO, which look at levels, do not fit.

    A policy can raise the reward by texts unlike those that the reward model was trained on. Set `beta`, which is 0 in
    GRPO's default, so that the policy stays near where it started, and read what it writes. An empty completion has no
    embedding where the embedder reads completions alone: `generation_kwargs={"min_new_tokens": 1}` keeps them away.

    Args:
        reward_model ([`NPRewardModel`]):
            A reward model that scores texts. It is put in evaluation mode, and runs where it is: move it to the device of the
            policy first.
        users ([`UserProfile`], `torch.Tensor` of shape `(1, Z)`, or a `dict` of them):
            The user of all prompts, or users by what the dataset's column `user_id` calls them: profiles of the reward
            model, or latents that it inferred. A latent is inferred once, and again when the choices of its profile change.
        name (`str`, *optional*):
            Name under which TRL logs the reward. `"user_reward_"` and a hash of the reward model and of the users if not set,
            so that two rewards of one run never share a name.

    Raises:
        `ValueError`: if there are no users, or a profile is of another model.

    Example:
    ```python
    >>> trainer = GRPOTrainer(model, reward_funcs=UserReward(reward_model, ada), train_dataset=prompts)
    >>> # rows of `prompts` have a `prompt` and a `user_id`, "ada" or "bob"
    >>> trainer = GRPOTrainer(model, reward_funcs=UserReward(reward_model, {"ada": ada, "bob": bob}), train_dataset=prompts)
    ```
    """

    def __init__(self, reward_model, users: User | dict, name: str | None = None):
        self.by_user_id = isinstance(users, dict)
        self.users = users if self.by_user_id else {None: users}
        if not self.users:
            raise ValueError("`users` is empty. Give a user, or users by their `user_id`.")
        for user_id, user in self.users.items():
            _check_user(user, reward_model, f"`users[{user_id!r}]`" if self.by_user_id else "The user")
        self.reward_model = reward_model.eval()
        self._inferred = {}  # user_id -> the keys of choices, and the latent inferred from them
        self.__name__ = self._hash_name() if name is None else name  # what TRL logs it as

    def __call__(self, prompts: list[Text], completions: list[Text], **columns) -> list[float]:
        """
        Score completions.

        Args:
            prompts (`list`), completions (`list`):
                N prompts with a completion each: strings, or conversations.
            columns:
                The other columns of the dataset, of which `user_id` is read where `users` is a `dict`, and what else TRL
                passes.

        Returns:
            `list[float]`: N rewards.

        Raises:
            `ValueError`: if there is no `user_id`, or one that is not known.
        """
        options = [
            {"prompt": prompt, "completion": completion}
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        latents = [self._latents_of(user_id) for user_id in self._user_ids(len(options), columns)]
        return _score(self.reward_model, options, latents).tolist()

    def _hash_name(self) -> str:
        digest = hashlib.sha256(fingerprint(self.reward_model).encode())
        for user_id in self.users:
            digest.update(repr(user_id).encode() + self._latents_of(user_id).float().cpu().numpy().tobytes())
        return f"user_reward_{digest.hexdigest()[:8]}"

    def _user_ids(self, num_options: int, columns: dict) -> list:
        if not self.by_user_id:
            return [None] * num_options
        if "user_id" not in columns:
            raise ValueError(
                "Rewards are those of many users, but the dataset has no column `user_id`. Add it, or give one user."
            )
        unknown = sorted(set(columns["user_id"]) - set(self.users), key=str)
        if unknown:
            raise ValueError(
                f"The dataset has the `user_id` {repr(unknown[0])[:60]}, but `users` does not: it has {len(self.users)}, such as "
                f"{next(iter(self.users))!r}. Give every `user_id` of the dataset a user."
            )
        return columns["user_id"]

    def _latents_of(self, user_id) -> torch.Tensor:
        user = self.users[user_id]
        if isinstance(user, torch.Tensor):
            return user
        if user_id not in self._inferred or self._inferred[user_id][0] != user.keys:
            self._inferred[user_id] = (user.keys, user.latents)
        return self._inferred[user_id][1]


def _score(reward_model, options: list[dict], users: list[User]) -> torch.Tensor:
    """Score options, each for a user `(N,)`. The latent of a user is read once."""
    distinct = {id(user): user for user in users}
    numbers = {key: number for number, key in enumerate(distinct)}
    context_index = torch.tensor([numbers[id(user)] for user in users], device=reward_model.device)
    return reward_model.score(options, users=list(distinct.values()), context_index=context_index)


def _check_user(user: User, reward_model, name: str) -> None:
    if isinstance(user, UserProfile):
        user.check_model(reward_model, name)

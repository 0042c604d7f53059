"""A user: choices that can be added and forgotten, and the latent that a model infers from them."""

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from np_trl.users.choices import join_contexts, key_of, no_choices, read_choices
from np_trl.users.fingerprint import check_fingerprint, fingerprint
from np_trl.users.posterior import check_at_least, is_gaussian, sample_latents


# where a file says what it holds
FACTS = "np_trl.UserProfile"


class UserProfile:
    """
    The choices of a user as a model sees them, and the latent that it infers from them.

    Each choice is embedded by itself, and the latent is inferred anew from those that are there. So a choice that was
    removed leaves nothing behind: the profile is, to the bit, one that never saw it. Texts are not kept.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            A policy or a reward model, in evaluation mode.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            The tokenizer of a policy that embeds options with its trunk.
        pairs (`list[dict]`, *optional*):
            Choices to start with, as [`UserProfile.add`] takes them.

    Raises:
        `ValueError`: if the model knows no users, or as [`UserProfile.add`].

    Example:
    ```python
    >>> ada = UserProfile(policy, tokenizer)
    >>> ada.add({"prompt": "How do I fix the bike?", "chosen": " take it slow", "rejected": " ask a buddy"})
    >>> policy.generate(**inputs, users=[ada, bob])  # one user a row
    >>> ada.save("ada.safetensors")
    ```
    """

    def __init__(self, model, tokenizer=None, pairs: Iterable[dict] = ()):
        if not getattr(model.config, "conditional", True):
            raise ValueError(
                "This model has `conditional=False`: it knows no users, so there can be no profile of one."
            )
        self.model, self.tokenizer = model, tokenizer
        self._choices: list[tuple[str, dict[str, torch.Tensor]]] = []  # the key of a pair, and its context set
        self.add(*pairs)

    def __len__(self) -> int:
        """Number of choices."""
        return len(self._choices)

    def __contains__(self, pair: dict) -> bool:
        """Whether a choice is there."""
        return key_of(pair) in self.keys

    @property
    def keys(self) -> list[str]:
        """What each choice is known by: a hash."""
        return [key for key, _ in self._choices]

    def add(self, *pairs: dict) -> None:
        """
        Add choices.

        Args:
            pairs (`dict`):
                Preference pairs: texts, as the model's `infer_user` takes them, or `chosen_embeds` and `rejected_embeds`
                of size E.

        Raises:
            `ValueError`: if a pair lacks a part, or an embedding is not of size E or not finite. None is added then.
        """
        self._choices += [(key_of(pair), read_choices(self.model, self.tokenizer, [pair])) for pair in pairs]

    def remove(self, pair: dict) -> None:
        """
        Forget a choice, as if it had never been seen.

        Args:
            pair (`dict`):
                A pair that was added.

        Raises:
            `KeyError`: if it was not.
        """
        if pair not in self:
            raise KeyError(f"None of the {len(self)} choices of this profile is {pair}. Nothing was removed.")
        del self._choices[self.keys.index(key_of(pair))]

    def merge(self, other: "UserProfile") -> "UserProfile":
        """
        Join two profiles of one person.

        Args:
            other ([`UserProfile`]):
                A profile of the same model.

        Returns:
            [`UserProfile`]: one with the choices of both, each once.

        Raises:
            `ValueError`: if the other is of another model.
        """
        check_fingerprint(fingerprint(other.model), self.model, "The other profile")
        merged = UserProfile(self.model, self.tokenizer)
        merged._choices = list({key: (key, context) for key, context in self._choices + other._choices}.values())
        return merged

    def blend(self, other: "UserProfile", weight: float) -> torch.Tensor:
        """
        Go from this user towards another: a continuum of behaviours.

        Args:
            other ([`UserProfile`]):
                A profile of the same model.
            weight (`float`):
                Share of the other: 0 is this user, 1 the other; beyond these the difference is exaggerated.

        Returns:
            `torch.Tensor` of shape `(1, Z)`: a latent, which can be one of the `users` of the model's methods.

        Raises:
            `ValueError`: if the other is of another model.
        """
        check_fingerprint(fingerprint(other.model), self.model, "The other profile")
        return torch.lerp(self.latents, other.latents.to(self.latents), weight)

    @property
    @torch.no_grad()
    def latents(self) -> torch.Tensor:
        """The user's latent `(1, Z)`, for `latents` of the model's methods."""
        return self.model.infer_latents(**self.context_set)

    @property
    def context_set(self) -> dict[str, torch.Tensor]:
        """The choices as the arguments of the model's `infer_latents`, with `context_embeds` of shape `(1, C, 2, E)`."""
        if not self._choices:
            return no_choices(self.model)
        return join_contexts([context for _, context in self._choices], self.model.device)

    @torch.no_grad()
    def uncertainty(self, pool=None, num_samples: int = 64, seed: int = 0) -> torch.Tensor:
        """
        Measure how far the choices leave the user's latent open.

        Args:
            pool ([`QuestionPool`] or `list[dict]`, *optional*), num_samples (`int`, *optional*, defaults to `64`), seed
                (`int`, *optional*, defaults to `0`):
                Those of [`sample_latents`], where latents are points.

        Returns:
            `torch.Tensor` of shape `(1, Z)`: standard deviations. Those of a normal latent are the model's own; others are
            those of latents that [`sample_latents`] draws.

        Raises:
            `ValueError`: as [`sample_latents`].
        """
        if is_gaussian(self.model):
            return self.model.infer_moments(**self.context_set)[1]
        check_at_least(2, num_samples=num_samples)
        return sample_latents(self, num_samples, pool, seed=seed).std(dim=0, keepdim=True)

    def save(self, path: str | Path) -> None:
        """
        Save the profile: embeddings and hashes of the choices, and what tells its model from others. No texts.

        Args:
            path (`str` or `Path`):
                A safetensors file. It appears when it is complete.
        """
        tensors = {name: values.contiguous() for name, values in self.context_set.items()}
        facts = {"fingerprint": fingerprint(self.model), "choices": self.keys}
        part = Path(f"{path}.part")
        save_file(tensors, part, {FACTS: json.dumps(facts)})
        part.replace(path)

    @classmethod
    def load(cls, path: str | Path, model, tokenizer=None) -> "UserProfile":
        """
        Load a profile.

        Args:
            path (`str` or `Path`):
                What [`UserProfile.save`] wrote.
            model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
                The model of the profile.
            tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
                Its tokenizer.

        Raises:
            `ValueError`: if the file is damaged or no profile, or the profile is of another model.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                context = {name: file.get_tensor(name) for name in file.keys()}
        except SafetensorError as error:
            raise ValueError(f"{str(path)!r} is not whole ({error}). Save the profile again.") from error
        if FACTS not in metadata:
            raise ValueError(f"{str(path)!r} is no profile of a user. Pass a file that `UserProfile.save` wrote.")
        facts = json.loads(metadata[FACTS])
        check_fingerprint(facts["fingerprint"], model, repr(str(path)))
        profile = cls(model, tokenizer)
        for index, key in enumerate(facts["choices"]):
            choice = {name: values[:, index : index + 1].to(model.device) for name, values in context.items()}
            profile._choices.append((key, choice))
        return profile

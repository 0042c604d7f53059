"""A user: choices that can be added and forgotten, and the latent that a model infers from them."""

from collections.abc import Iterable
from pathlib import Path

import torch

from np_trl.data.ranges import check_at_least
from np_trl.users.choices import Choice, join_contexts, key_of
from np_trl.users.fingerprint import check_fingerprint, fingerprint, is_same_model
from np_trl.users.posterior import is_gaussian, sample_latents
from np_trl.users.profile_file import is_profile, read_profile, write_profile
from np_trl.users.user_file import read_pairs, write_pairs


class UserProfile:
    """
    The choices of a user as a model sees them, and the latent that it infers from them.

    Each choice is embedded by itself, and the latent is inferred again from those that are there. So a choice that was
    removed leaves nothing behind: the profile is bit-identical to one that never saw it. Texts are not kept; embeddings are,
    and who has the model and a list of questions can tell by them what was chosen. Keep profiles as other personal data.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            A policy or a reward model, in evaluation mode.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Another tokenizer than that which a policy carries.
        pairs (`list[dict]`, *optional*):
            Choices to start with, as [`UserProfile.add`] takes them.

    Raises:
        `ValueError`: if the model knows no users, or as [`UserProfile.add`].

    Example:
    ```python
    >>> ada = UserProfile(policy)
    >>> ada.add({"prompt": "How do I fix the bike?", "chosen": " take it slow", "rejected": " ask a buddy"})
    >>> policy.generate(**inputs, users=[ada, bob])  # one user a row
    >>> ada.save("ada.safetensors")
    ```
    """

    def __init__(self, model, tokenizer=None, pairs: Iterable[dict] = ()):
        model.no_choices()  # which a model that knows no users refuses
        self.model, self.tokenizer = model, tokenizer
        self._choices: list[Choice] = []
        self.add(*pairs)

    def __len__(self) -> int:
        """Number of choices."""
        return len(self._choices)

    def __contains__(self, pair: dict) -> bool:
        """Whether a choice is there."""
        return self.has(key_of(pair))

    def has(self, pair_key: str) -> bool:
        """Whether the choice of a pair is there, given by [`key_of`]."""
        return any(choice.is_of(pair_key) for choice in self._choices)

    @property
    def keys(self) -> list[str]:
        """The key of each choice: a hash that only who has its embeddings can compare with that of a pair."""
        return [choice.key for choice in self._choices]

    def add(self, *pairs: dict) -> None:
        """
        Add choices.

        Args:
            pairs (`dict`):
                Preference pairs: texts, as the model's `infer_user` takes them, or `chosen_embeds` and `rejected_embeds`
                of size E.

        Raises:
            `ValueError`: as [`ChoiceReaderMixin.read_pairs`]. None is added then.
        """
        self._choices += [Choice.read(self.model, self.tokenizer, pair) for pair in pairs]

    def remove(self, pair: dict) -> None:
        """
        Forget a choice, as if it had never been seen.

        Args:
            pair (`dict`):
                A pair that was added.

        Raises:
            `KeyError`: if it was not.
        """
        pair_key = key_of(pair)
        found = [index for index, choice in enumerate(self._choices) if choice.is_of(pair_key)]
        if not found:
            raise KeyError(
                f"None of the {len(self)} choices of this profile is {str(pair)[:60]!r}. Nothing was removed."
            )
        del self._choices[found[0]]

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
        other.check_model(self.model, "The other profile")
        merged = UserProfile(self.model, self.tokenizer)
        for choice in self._choices + other._choices:
            if not any(map(choice.is_same, merged._choices)):
                merged._choices.append(choice)
        return merged

    def blend(self, other: "UserProfile", weight: float) -> torch.Tensor:
        """
        Go from this user towards another: a continuum of behaviours.

        Args:
            other ([`UserProfile`]):
                A profile of the same model.
            weight (`float`):
                Share of the other: 0 is this user, 1 the other; beyond these the difference is exaggerated. A weight that is
                not finite, or leads far beyond any user's latent, is refused where the latent is used.

        Returns:
            `torch.Tensor` of shape `(1, Z)`: a latent, which can be one of the `users` of the model's methods.

        Raises:
            `ValueError`: if the other is of another model.
        """
        other.check_model(self.model, "The other profile")
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
            return self.model.no_choices()
        return join_contexts([choice.context for choice in self._choices], self.model.device)

    def check_model(self, model, what: str = "The profile") -> None:
        """
        Check that the latents of this profile are those of a model.

        Args:
            model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
                The model that is to take them.
            what (`str`, *optional*):
                What to call the profile in an error.

        Raises:
            `ValueError`: if they are another model's.
        """
        if not is_same_model(self.model, model):
            check_fingerprint(fingerprint(self.model), model, what)

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
        Save the profile: embeddings and keys of the choices, and the fingerprint of the model. No texts.

        Args:
            path (`str` or `Path`):
                A safetensors file in a folder that exists. It appears when it is complete; until then, and if it cannot be
                written, the old one stays.
        """
        write_profile(path, fingerprint(self.model), self.keys, self.context_set)

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
                Another tokenizer than that which a policy carries.

        Raises:
            `ValueError`: if the file is damaged or no profile, or the profile is of another model.
        """
        found, choices = read_profile(path, model)
        check_fingerprint(found, model, repr(str(path)))
        profile = cls(model, tokenizer)
        profile._choices = choices
        return profile

    @classmethod
    def from_json(cls, path: str | Path, model, tokenizer=None) -> "UserProfile":
        """
        Read a user's choices from a file, such as those of `examples/users`.

        Args:
            path (`str` or `Path`):
                A JSON file, `{"pairs": [{"prompt": ..., "chosen": ..., "rejected": ...}, ...]}`: [`read_pairs`].
            model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]), tokenizer
                ([`~transformers.PreTrainedTokenizerBase`], *optional*):
                Those of [`UserProfile`].

        Raises:
            `ValueError`: if the file is damaged or holds no pairs, or as [`UserProfile.add`].
            `FileNotFoundError`: if there is no such file.
        """
        return cls(model, tokenizer, read_pairs(path))

    @staticmethod
    def to_json(path: str | Path, pairs: Iterable[dict]) -> None:
        """
        Write choices to a file from which [`UserProfile.from_json`] reads the same user. A profile keeps no texts, so they
        are given here.

        Args:
            path (`str` or `Path`), pairs (`Iterable[dict]`):
                Those of [`write_pairs`].

        Raises:
            `ValueError`: as [`write_pairs`].
        """
        write_pairs(path, pairs)

    @classmethod
    def from_file(cls, path: str | Path, model, tokenizer=None) -> "UserProfile":
        """
        Read a user from either kind of file: a saved profile, whose name ends with `.safetensors`, or choices in JSON.

        Args:
            path (`str` or `Path`), model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]), tokenizer
                ([`~transformers.PreTrainedTokenizerBase`], *optional*):
                Those of [`UserProfile.load`] and of [`UserProfile.from_json`].

        Raises:
            `ValueError`: as these two.
        """
        read = cls.load if is_profile(path) else cls.from_json
        return read(path, model, tokenizer)

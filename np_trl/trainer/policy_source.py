"""The path of a policy. TRL would load model, reference and tokenizer from it, but knows no FiLM, so that they are loaded here."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from peft import PeftConfig
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from np_trl.models.weights import read_path
from np_trl.trainer.adapter_defaults import complete_adapter
from np_trl.trainer.np_dpo_config import NPDPOConfig
from np_trl.trainer.policy import (
    check_film_kwargs,
    create_policy,
    create_reference,
    find_commit,
    hub_arguments,
    read_policy_config,
)


@dataclass(frozen=True)
class PolicySource:
    """
    A path, and how it is read: the policy, its reference policy and its tokenizer come from the same revision, folder and
    cache, in the same precision.

    Args:
        path (`str`):
            Directory or Hub name of a plain base model or of a policy.
        init_kwargs (`dict[str, Any]`):
            Arguments of `from_pretrained`.
    """

    path: str
    init_kwargs: dict[str, Any]

    @classmethod
    def of(cls, path: str | os.PathLike, args: NPDPOConfig, quantization_config=None) -> "PolicySource":
        """
        Read a path as TRL's trainers do. `args` stay unchanged.

        Raises:
            `TypeError`: if it is no path.
            `OSError`: if there is no such folder, and it is no name on the Hub.
            `ValueError`: if there are two configurations of a quantisation.
        """
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(
                f"`model` is a {type(path).__name__}, but must be the path of a base model or of a policy, or a model with FiLM."
            )
        init_kwargs = {"trust_remote_code": args.trust_remote_code, **(args.model_init_kwargs or {})}
        if quantization_config is not None:
            if "quantization_config" in init_kwargs:
                raise ValueError(
                    "`quantization_config` is an argument of the trainer and in `args.model_init_kwargs`. Pass it once, to the "
                    "trainer."
                )
            init_kwargs["quantization_config"] = quantization_config
        if args.distributed_state.distributed_type in ["MULTI_GPU", "DEEPSPEED"]:
            init_kwargs["device_map"] = None
        return cls(read_path(path), init_kwargs)

    @cached_property
    def commit(self) -> str | None:
        """The commit on the Hub."""
        return find_commit(self.path, **self.init_kwargs)

    def load_policy(
        self, film_kwargs: dict, peft_config: PeftConfig | None, embedded: bool, seed: int
    ) -> tuple[PreTrainedModel, PeftConfig | None]:
        """
        Load the policy ([`create_policy`]) for the adapter that it will get.

        Args:
            film_kwargs (`dict`):
                Fields of the FiLM config.
            peft_config ([`~peft.PeftConfig`], *optional*), embedded (`bool`):
                The adapter, and whether options come embedded: [`complete_adapter`].
            seed (`int`):
                Seed of FiLM and of the context encoder, set here as TRL does where it makes a model.

        Returns:
            `tuple[PreTrainedModel, PeftConfig | None]`: the policy, and the adapter completed.

        Raises:
            `ValueError`: if the path holds a policy already, and `film_kwargs` are not those that it was trained with.
        """
        check_film_kwargs(self.path, film_kwargs, **self.init_kwargs)
        config = read_policy_config(self.path, film_kwargs, **self.init_kwargs)
        peft_config = complete_adapter(peft_config, config, embedded, self.commit)
        set_seed(seed)
        return create_policy(self.path, film_kwargs, peft_config, **self.init_kwargs), peft_config

    def load_reference(self, policy: PreTrainedModel) -> PreTrainedModel:
        """The reference policy of a policy without an adapter, in the precision and with the attention of the policy."""
        like_policy = {"dtype": policy.dtype, "attn_implementation": policy.config._attn_implementation}
        return create_reference(self.path, **{**self.init_kwargs, **like_policy})

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer."""
        source = hub_arguments(self.init_kwargs)
        return AutoTokenizer.from_pretrained(
            self.path, trust_remote_code=self.init_kwargs["trust_remote_code"], **source
        )


@contextmanager
def used_init_kwargs(args: NPDPOConfig, source: PolicySource | None) -> Iterator[None]:
    """
    Hide `args.model_init_kwargs` from TRL where a [`PolicySource`] has used them: TRL would say that they are ignored. They
    are there again afterwards.
    """
    init_kwargs = args.model_init_kwargs
    if source is not None:
        args.model_init_kwargs = None
    try:
        yield
    finally:
        args.model_init_kwargs = init_kwargs

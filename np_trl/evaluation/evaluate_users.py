"""A saved model and users in, the curve over numbers of context pairs out."""

import os

from accelerate import Accelerator
from datasets import Dataset
from torch import nn
from transformers import AutoConfig, PreTrainedTokenizerBase

from np_trl.data import EvaluationProtocol
from np_trl.data.user_selection import UserSelection
from np_trl.evaluation.policy_evaluation import PolicyEvaluation
from np_trl.evaluation.reward_evaluation import RewardEvaluation
from np_trl.evaluation.user_evaluation import UserEvaluation
from np_trl.models import NPRewardModel, NPRewardModelConfig
from np_trl.trainer import load_policy


def evaluate_users(
    model: nn.Module | str | os.PathLike, users: Dataset, protocol: EvaluationProtocol | None = None, **kwargs
) -> dict[str, float]:
    """
    Evaluate a policy or a reward model on users, on pairs that are not in their contexts. No trainer is needed.

    Under `accelerate launch` the processes share the tasks, and all return the same.

    Args:
        model ([`~transformers.PreTrainedModel`], [`~peft.PeftModel`], `str` or `os.PathLike`):
            A policy or a reward model, which runs where it is; or the path of one. `beta`, lengths and, for an adapter, the
            reference policy are the model's own.
        users ([`~datasets.Dataset`]):
            Preference pairs with `user_id`, as a trainer takes them.
        protocol ([`EvaluationProtocol`], *optional*):
            How the users are evaluated.
        kwargs:
            Passed to [`load_evaluation`], such as `reference`.

    Returns:
        `dict[str, float]`: `eval_nc{N}_accuracy` and the like: [`UserEvaluation.evaluate`].

    Raises:
        `ValueError`: if training would refuse a pair, no user has pairs enough, or a merged policy has no reference policy.

    Example:
    ```python
    >>> evaluate_users("runs/np_dpo_style", users, EvaluationProtocol(num_contexts=[0, 10]))["eval_nc10_accuracy"]
    0.993
    ```
    """
    return load_evaluation(model, users, protocol, **kwargs).evaluate()


def load_evaluation(
    model: nn.Module | str | os.PathLike,
    users: Dataset,
    protocol: EvaluationProtocol | None = None,
    *,
    reference: nn.Module | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    dtype: str = "float32",
    drop_short_users: bool = True,
    drop_ties: bool = True,
    batch_size: int = 32,
) -> UserEvaluation:
    """
    Load a model and prepare users for its evaluation.

    Args:
        model, users, protocol:
            Those of [`evaluate_users`].
        reference (`nn.Module`, *optional*):
            The reference policy. That of the adapter, or that which a merged policy names, if not given: one whose base was a
            folder names none.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Another tokenizer than that which the policy carries.
        dtype (`str`, *optional*, defaults to `"float32"`):
            Data type of a policy that is loaded.
        drop_short_users (`bool`, *optional*, defaults to `True`), drop_ties (`bool`, *optional*, defaults to `True`):
            Whether users with too few pairs, and ties, are left out with a logged count, or refused.
        batch_size (`int`, *optional*, defaults to `32`):
            Tasks that a process evaluates at once, each with two options for every target pair.

    Returns:
        [`PolicyEvaluation`] or [`RewardEvaluation`].

    Raises:
        `ValueError`: as [`evaluate_users`].
    """
    accelerator, protocol = Accelerator(), EvaluationProtocol() if protocol is None else protocol
    if not isinstance(model, nn.Module):
        model = load_model(model, dtype).to(accelerator.device)
    selection = UserSelection.of_evaluation(protocol, drop_short_users, drop_ties)
    settings = {"batch_size": batch_size, "accelerator": accelerator}
    if isinstance(model.config, NPRewardModelConfig):
        return RewardEvaluation.of_users(model, users, protocol, selection, **settings)
    tokenizer = model.get_tokenizer() if tokenizer is None else tokenizer
    return PolicyEvaluation.of_users(
        model, users, protocol, selection, **settings, tokenizer=tokenizer, reference=reference
    )


def load_model(path: str | os.PathLike, dtype: str = "float32") -> nn.Module:
    """Load a reward model, or a policy in a data type, from its path."""
    return NPRewardModel.from_pretrained(path) if is_reward_model(path) else load_policy(path, dtype=dtype)


def is_reward_model(path: str | os.PathLike) -> bool:
    """Whether a path holds a reward model, not a policy."""
    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError):  # an adapter has no config of its own
        return False
    return config.model_type == NPRewardModelConfig.model_type

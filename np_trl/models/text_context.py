"""Choices given as text, which a policy embeds with its trunk."""

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from .completion_log_probs import MAX_ROWS
from .implicit_reward import ImplicitRewardMixin
from .policy_tokenizer import TokenizerMixin
from .texts import SIDES, check_pair, describe_tie, template_kwargs


# fields of a policy's configuration that change how its trunk embeds options
_TRUNK_FIELDS = ("context_layer", "option_pooling", "context_max_length", "context_truncation")


class TextContextMixin(TokenizerMixin, ImplicitRewardMixin):
    """Mix into a policy that has `infer_latents` and `embed_options`."""

    def embed_pairs(self, pairs: list[dict], tokenizer=None) -> torch.Tensor:
        """
        Embed a user's choices, given as text, with the trunk. Tokens are those of training, as TRL's DPO trainer makes them.

        Args:
            pairs (`list[dict]`):
                C preference pairs with `prompt`, `chosen` and `rejected`: strings, or conversations (lists of messages
                with `role` and `content`, and, *optional*, the keys `tools` and `chat_template_kwargs`).
            tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
                Another tokenizer than that which the policy carries.

        Returns:
            `torch.Tensor` of shape `(1, C, 2, H)`: the user's context set, for `infer_latents`.

        Raises:
            `ValueError`: if there are no pairs, or a pair lacks a part, or another model embeds the policy's options.
        """
        if self.config.context_source != "trunk":
            raise ValueError(
                f"This policy has `context_source={self.config.context_source!r}`: another model embedded the options of "
                "its training set. Embed them with it, and call `infer_latents`."
            )
        if not pairs:
            raise ValueError("`pairs` is empty. Pass at least one pair, or call `infer_user`, which takes none too.")
        batches = split_rows(self.tokenize_pairs(pairs, tokenizer))
        embeds = torch.cat([self.embed_options(**batch) for batch in batches])  # (2C, H)
        return embeds.view(1, len(pairs), len(SIDES), -1)

    def inferring_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the context encoder and, where it embeds the options, the trunk."""
        yield "context_encoder", self.model.context_encoder
        if self.config.context_source == "trunk":
            yield "embed_tokens", self.get_input_embeddings()
            for index in range(self.config.context_layer):
                yield f"layers.{index}", self.model.layers[index]

    def inference_settings(self) -> dict:
        """Return the settings of the trunk, and the configuration of its decoder; none where it embeds no options."""
        if self.config.context_source != "trunk":
            return {}
        settings = {name: getattr(self.config, name) for name in _TRUNK_FIELDS}
        return {"decoder": self.config.to_diff_dict(), **settings}

    def tokenize_pairs(self, pairs: list[dict], tokenizer=None) -> dict[str, torch.Tensor]:
        """
        Tokenise choices, given as text, as in training.

        Args:
            pairs (`list[dict]`):
                C preference pairs as in [`TextContextMixin.embed_pairs`].
            tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
                Another tokenizer than that which the policy carries.

        Returns:
            `dict[str, torch.Tensor]`: `input_ids`, `attention_mask` and `completion_mask`, each of shape `(2C, T)`: chosen
            and rejected of the first pair, then of the second, ...

        Raises:
            `ValueError`: if a pair is one that training refuses too: [`check_pair`] and [`truncate_pair`].
        """
        tokenizer = self.get_tokenizer() if tokenizer is None else tokenizer
        limits = (self.config.context_max_length, self.config.context_truncation)
        options, starts = [], []  # 2C each
        for index, pair in enumerate(pairs):
            check_pair(pair, f"Pair {index}")
            kept = truncate_pair(*tokenize_pair(pair, tokenizer), *limits, where=f"pair {index}")
            if kept[0] == kept[1]:
                raise ValueError(describe_token_tie(kept, limits[0], f"pair {index}"))
            for option, start in kept:
                options.append(option)
                starts.append(start)
        starts = torch.tensor(starts).unsqueeze(1)  # (2C, 1)
        input_ids = pad_sequence([torch.tensor(option) for option in options], batch_first=True)  # (2C, T)
        lengths = torch.tensor([len(option) for option in options]).unsqueeze(1)  # (2C, 1)
        positions = torch.arange(input_ids.shape[1])
        attention_mask = (positions < lengths).long()
        completion_mask = attention_mask * (positions >= starts)
        tokens = {"input_ids": input_ids, "attention_mask": attention_mask, "completion_mask": completion_mask}
        return {name: values.to(self.device) for name, values in tokens.items()}


def split_rows(tokens: dict[str, torch.Tensor], batch_size: int = MAX_ROWS) -> list[dict[str, torch.Tensor]]:
    """Split rows of tokens `(N, T)`, padded on the right, into batches that are no longer than their longest row."""
    batches = []
    for start in range(0, len(tokens["input_ids"]), batch_size):
        batch = {name: values[start : start + batch_size] for name, values in tokens.items()}
        length = int(batch["attention_mask"].sum(dim=1).max())
        batches.append({name: values[:, :length] for name, values in batch.items()})
    return batches


def tokenize_pair(pair: dict, tokenizer) -> tuple[int, list[int], list[int]]:
    """
    Tokenise a preference pair as TRL's DPO trainer does.

    Args:
        pair (`dict`):
            `prompt`, `chosen` and `rejected`: strings, or conversations.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer.

    Returns:
        `tuple[int, list[int], list[int]]`: where the completions start, and the tokens of the prompt with each of them.

    Raises:
        `ValueError`: if texts are to end with a token that the tokenizer does not have.
    """
    prompt, prompt_ids = pair["prompt"], tokenize_prompt(pair["prompt"], tokenizer, **template_kwargs(pair))
    if isinstance(prompt, str):
        check_end_token(tokenizer)
        texts = [prompt + _with_eos(pair[side], tokenizer.eos_token) for side in SIDES]
        chosen_ids, rejected_ids = tokenizer(texts)["input_ids"]
    else:
        kwargs = {"return_dict": False, **template_kwargs(pair)}
        chosen_ids, rejected_ids = (tokenizer.apply_chat_template(prompt + pair[side], **kwargs) for side in SIDES)
    # tokens may merge where the prompt ends: the completions start where they differ from it
    start = min(_common_length(prompt_ids, option_ids) for option_ids in (chosen_ids, rejected_ids))
    return start, chosen_ids, rejected_ids


def tokenize_prompt(prompt: str | list[dict], tokenizer, **kwargs) -> list[int]:
    """
    Tokenise a prompt, which an answer follows, as TRL's DPO trainer does.

    Args:
        prompt (`str` or `list[dict]`):
            A text, or messages.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer.
        kwargs:
            Arguments of the chat template, such as `tools`.

    Returns:
        `list[int]`: tokens.
    """
    if isinstance(prompt, str):
        return tokenizer(prompt)["input_ids"]
    return tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False, **kwargs)


def check_end_token(tokenizer) -> None:
    """
    Check that a tokenizer has the token that completions given as strings end with.

    Raises:
        `ValueError`: if it has none.
    """
    if tokenizer.eos_token is None:
        raise ValueError(
            "The tokenizer has `eos_token=None`, but completions that are strings are trained to end with one. Set "
            "`tokenizer.eos_token`, or give conversations, which end as the chat template says."
        )


def truncate_pair(
    start: int,
    chosen: list[int],
    rejected: list[int],
    max_length: int | None,
    truncation: str,
    where: str,
) -> list[tuple[list[int], int]]:
    """
    Truncate the tokens of a pair as TRL's collator does, and check what is left.

    Args:
        start (`int`), chosen (`list[int]`), rejected (`list[int]`):
            What [`tokenize_pair`] returns.
        max_length (`int`, *optional*), truncation (`str`):
            Largest number of tokens, and which are kept: the first (`"keep_start"`) or the last (`"keep_end"`).
        where (`str`):
            What to call the pair in an error.

    Returns:
        `list[tuple[list[int], int]]`: of the chosen and of the rejected option the tokens that are kept, and where the
        completion starts among them.

    Raises:
        `ValueError`: if no token of a completion is left.
    """
    kept = []
    for side, option in zip(SIDES, (chosen, rejected), strict=True):
        cut = 0 if max_length is None else max(0, len(option) - max_length)
        tokens, first = (
            (option[cut:], max(0, start - cut)) if truncation == "keep_end" else (option[:max_length], start)
        )
        if len(option) <= start:
            raise ValueError(f"`{side}` of {where} adds no tokens to its prompt. Fill it in or drop it.")
        if first >= len(tokens):
            raise ValueError(
                f"The prompt of {where} fills `max_length={max_length}` and leaves no room for the completion. Shorten it, or "
                'train with a larger `max_length` or `truncation_mode="keep_end"`.'
            )
        kept.append((tokens, first))
    return kept


def describe_token_tie(kept: list[tuple[list[int], int]], max_length: int | None, where: str) -> str:
    """The message about a pair of which [`truncate_pair`] kept the same tokens."""
    tokens, start = kept[0]
    is_cut = max_length is not None and len(tokens) >= max_length
    how = f"the same in the {max_length} tokens that are kept" if is_cut else "the same in tokens"
    return describe_tie(where, how, tokens[start:])


def _with_eos(text: str, eos_token: str) -> str:
    return text if text.endswith(eos_token) else text + eos_token


def _common_length(first: list[int], second: list[int]) -> int:
    """Number of tokens that two sequences start with alike."""
    for index, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return index
    return min(len(first), len(second))

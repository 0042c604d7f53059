"""Embeddings of texts from a frozen encoder or language model: the embedder that a reward model was trained with."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoTokenizer,
    BatchEncoding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.configuration_utils import strict
from transformers.utils import logging

from .embedder_files import check_index, load_frozen
from .pooling import pool_tokens
from .texts import KINDS, check_parts, option_text, plain_text


logger = logging.get_logger(__name__)

POOLINGS = ("mean", "last")
DTYPES = ("auto", "float32", "bfloat16", "float16")


@strict
@dataclass
class TextEmbedder:
    """
    Embed texts, as the training set was embedded. The embedder is loaded when the first text is embedded: safetensors alone,
    and no code that it brings.

    What does not fit into `max_length` depends on the kind. Of a `"response"` the start is kept, and the log says so. Of a
    `"prompt_response"` the end is kept: prompts are cut off at their start, completions never.

    Args:
        name_or_path (`str`):
            An encoder or a language model: its name on the Hub, or a folder.
        revision (`str`, *optional*, defaults to `"main"`):
            Branch, tag or commit on the Hub.
        pooling (`str`, *optional*, defaults to `"mean"`):
            How the hidden states of a text become one embedding: `"mean"` over its tokens, or its `"last"`.
        max_length (`int`, *optional*, defaults to `256`):
            Largest number of tokens, the special ones included.
        normalize (`bool`, *optional*, defaults to `False`):
            Whether embeddings are scaled to length 1.
        layer (`int`, *optional*):
            Number of layers whose output is pooled. All layers, and the norm behind them, if not set.
        kind (`str`, *optional*, defaults to `"response"`):
            What is embedded of an option: `"response"`, its completion alone, or `"prompt_response"`, its prompt, a line
            break and its completion. The text of a conversation is its messages' contents, line breaks between them.
        chat_template (`bool`, *optional*, defaults to `False`):
            Whether an option is embedded as the conversation that the tokenizer's chat template makes of it: the user says
            the prompt, and the assistant the completion. For the kind `"prompt_response"` only.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Precision in which the embedder runs: `"float32"`, `"bfloat16"`, `"float16"`, or `"auto"`, that of its file.

    Example:
    ```python
    >>> embedder = TextEmbedder("sentence-transformers/all-MiniLM-L6-v2", normalize=True)
    >>> embedder.embed(["take it slow", "ask a buddy"])  # (2, 384)
    ```
    """

    name_or_path: str
    revision: str = "main"
    pooling: str = "mean"
    max_length: int = 256
    normalize: bool = False
    layer: int | None = None
    kind: str = "response"
    chat_template: bool = False
    dtype: str = "auto"

    # whether the log says that texts are cut off
    _has_warned = False

    def __post_init__(self):
        _check_choice("pooling", self.pooling, POOLINGS)
        _check_choice("kind", self.kind, KINDS)
        _check_choice("dtype", self.dtype, DTYPES)
        if self.chat_template and self.kind != "prompt_response":
            raise ValueError(
                f"`chat_template=True` embeds a conversation, but `kind={self.kind!r}` leaves the prompt out. Set "
                '`kind="prompt_response"`, or `chat_template=False`.'
            )
        _check_name(self.name_or_path)
        if self.max_length < 1:
            raise ValueError(f"`max_length={self.max_length}` must be at least 1 token.")
        if self.layer is not None and self.layer < 0:
            raise ValueError(f"`layer={self.layer}` must be at least 0. Leave it out for the last layer.")

    @classmethod
    def from_settings(cls, settings: dict) -> "TextEmbedder":
        """
        Build an embedder from what a configuration says of it.

        Args:
            settings (`dict`):
                The arguments of [`TextEmbedder`].

        Raises:
            `ValueError`: if a key is unknown, or `name_or_path` is absent, or no name.
        """
        allowed = [field.name for field in fields(cls)]
        unknown = sorted(set(settings) - set(allowed))
        if unknown:
            raise ValueError(f"`embedder={settings}` has unknown keys {unknown}. It takes {allowed}.")
        if "name_or_path" not in settings:
            raise ValueError(
                f"`embedder={settings}` has no `name_or_path`. Name an embedder on the Hub, or its folder."
            )
        _check_name(settings["name_or_path"])
        return cls(**settings)

    def embed(self, texts: list[str], device: torch.device | str = "cpu", batch_size: int = 32) -> torch.Tensor:
        """
        Embed texts. The embedding of a text does not depend on the other texts. Of the kind `"prompt_response"` each is a
        prompt, a line break and a completion, as in [`TextEmbedder.embed_options`], which tells them apart.

        Args:
            texts (`list[str]`):
                N texts.
            device (`torch.device` or `str`, *optional*, defaults to `"cpu"`):
                Where the embedder runs.
            batch_size (`int`, *optional*, defaults to `32`):
                Texts at once. Texts of about the same length go together.

        Returns:
            `torch.Tensor` of shape `(N, E)`, float32, on `device`.

        Raises:
            `ValueError`: if there are no texts, or a text has no tokens, or the embedder has fewer layers than `layer`
            or takes fewer tokens than `max_length`, or has `chat_template=True`, or brings its own code.
            `OSError`: if the embedder cannot be loaded.
        """
        if self.chat_template:
            raise ValueError(
                "`chat_template=True` embeds options, and a text alone is none. Call `embed_options`, or set "
                "`chat_template=False`."
            )
        return self._embed(texts, device, batch_size)

    @torch.no_grad()
    def _embed(
        self, texts: list[str], device: torch.device | str, batch_size: int, options: list[dict] | None = None
    ) -> torch.Tensor:
        if not texts:
            raise ValueError("`texts` is empty. Pass at least one text to embed.")
        # longest first: what does not fit into memory fails at once
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]), reverse=True)
        batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        embeds = torch.cat([self._embed_batch(batch, texts, options, device) for batch in batches])
        return embeds[torch.tensor(order).argsort()]  # (N, E)

    def embed_options(
        self, options: list[dict], device: torch.device | str = "cpu", batch_size: int = 32
    ) -> torch.Tensor:
        """
        Embed options.

        Args:
            options (`list[dict]`):
                N options with `completion`, and `prompt` for the kind `"prompt_response"`: strings, or conversations
                (lists of messages with `role` and `content`).
            device (`torch.device` or `str`, *optional*, defaults to `"cpu"`):
                Where the embedder runs.
            batch_size (`int`, *optional*, defaults to `32`):
                Options at once.

        Returns:
            `torch.Tensor` of shape `(N, E)`, float32.

        Raises:
            `ValueError`: if an option lacks a part that is embedded, or a part is empty or no text, or the tokenizer lacks
            the chat template; or if the completion of a `"prompt_response"` leaves no room for a token before it.
        """
        parts = KINDS[self.kind]
        for index, option in enumerate(options):
            missing = [part for part in parts if not isinstance(option, dict) or part not in option]
            if missing:
                raise ValueError(
                    f"Option {index} has no {missing}, but `kind={self.kind!r}` embeds {list(parts)}. Give a dict with these keys."
                )
            check_parts({part: option[part] for part in parts}, f"option {index}")
        texts = [self._render(option) if self.chat_template else option_text(option, self.kind) for option in options]
        return self._embed(texts, device, batch_size, options)

    def _render(self, option: dict) -> str:
        messages = _messages("user", option["prompt"]) + _messages("assistant", option["completion"])
        return self._tokenizer.apply_chat_template(messages, tokenize=False)

    def _render_prompt(self, option: dict) -> str:
        """What stands before the completion in the text of an option."""
        if not self.chat_template:
            return plain_text(option["prompt"]) + "\n"
        messages = _messages("user", option["prompt"])
        return self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        # padded on the right, so that the positions of a text's tokens do not depend on the batch
        tokenizer = load_frozen(
            AutoTokenizer, self.name_or_path, self.revision, padding_side="right", truncation_side="right"
        )
        if self.chat_template and tokenizer.chat_template is None:
            raise ValueError(
                f"The tokenizer of {self.name_or_path!r} has no chat template. Set `chat_template=False`, or take a model "
                "for chats."
            )
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token  # masked, so any token serves
        if self.max_length > tokenizer.model_max_length:
            raise ValueError(
                f"`max_length={self.max_length}` exceeds the {tokenizer.model_max_length} tokens that "
                f"{self.name_or_path!r} takes. Lower `max_length`."
            )
        num_special = 0 if self.chat_template else tokenizer.num_special_tokens_to_add()
        if self.max_length <= num_special:
            raise ValueError(
                f"`max_length={self.max_length}` leaves no token for a text beside the {num_special} special tokens of "
                f"{self.name_or_path!r}. Raise `max_length`."
            )
        return tokenizer

    @cached_property
    def _model(self) -> PreTrainedModel:
        check_index(self.name_or_path, self.revision)
        weights = {"dtype": self.dtype, "use_safetensors": True}
        model = load_frozen(AutoModel, self.name_or_path, self.revision, **weights)
        model.config.use_cache = False  # a language model would keep the keys and values of every token
        return model.eval()

    def _embed_batch(
        self, batch: list[int], texts: list[str], options: list[dict] | None, device: torch.device | str
    ) -> torch.Tensor:
        inputs = self._cut([texts[index] for index in batch], options and [options[index] for index in batch])
        inputs = inputs.to(device)
        mask = inputs["attention_mask"]  # (B, T)
        if not mask.any(dim=1).all():
            raise ValueError(f"A text has no tokens for {self.name_or_path!r}. Leave empty texts out.")
        outputs = self._model.to(device)(**inputs, output_hidden_states=self.layer is not None)
        hidden_states = outputs.last_hidden_state if self.layer is None else self._at_layer(outputs.hidden_states)
        embeds = pool_tokens(hidden_states.float(), mask, self.pooling)  # (B, E)
        return nn.functional.normalize(embeds, dim=-1) if self.normalize else embeds

    def _tokenize(self, texts: list[str], **kwargs) -> BatchEncoding:
        return self._tokenizer(
            texts,
            padding=True,
            return_tensors="pt",
            return_token_type_ids=False,
            add_special_tokens=not self.chat_template,  # a template writes its own
            verbose=False,
            **kwargs,
        )

    def _cut(self, texts: list[str], options: list[dict] | None) -> BatchEncoding:
        """Tokenise texts, and cut off what is beyond `max_length`."""
        inputs = self._tokenize(texts)
        surplus = (inputs["attention_mask"].sum(dim=1, keepdim=True) - self.max_length).clamp(min=0)  # (B, 1)
        if not surplus.any():
            return inputs
        self._warn_of_cut(int((surplus > 0).sum()), len(texts))
        if self.kind == "response":
            return self._tokenize(texts, truncation=True, max_length=self.max_length)
        openings = [self._tokenizer.bos_token_id, self._tokenizer.cls_token_id]
        openings = torch.tensor([token for token in openings if token is not None])
        has_opening = torch.isin(inputs["input_ids"][:, :1], openings).int()  # (B, 1), kept: models expect it
        for index in surplus.squeeze(1).nonzero().flatten().tolist() if options else ():
            self._check_room(options[index], int(surplus[index] + has_opening[index] * self.chat_template))
        positions = torch.arange(self.max_length)  # (T,)
        kept = positions + surplus * (positions >= has_opening)  # (B, T)
        return BatchEncoding({name: values.gather(1, kept) for name, values in inputs.items()})

    def _check_room(self, option: dict, num_cut: int) -> None:
        """Check that the first tokens of an option, which are cut off, are its prompt's, and not all of those."""
        prompt = self._tokenizer(self._render_prompt(option), add_special_tokens=False, verbose=False)["input_ids"]
        if num_cut >= len(prompt):
            raise ValueError(
                f"The completion {plain_text(option['completion'])[:60]!r} would be cut off at `max_length={self.max_length}`"
                f" tokens: it leaves no room for a prompt. Raise `max_length` by {num_cut - len(prompt) + 1} or more, shorten "
                'the completion, or embed completions alone (`kind="response"`), whose start is kept.'
            )

    def _warn_of_cut(self, num_cut: int, num_texts: int) -> None:
        if self._has_warned:
            return
        self._has_warned = True
        part = "at their end" if self.kind == "response" else "at the start of the prompt"
        logger.warning(
            "%d of %d texts have more than `max_length=%d` tokens and are cut off %s, as all such texts are.",
            num_cut, num_texts, self.max_length, part,
        )  # fmt: skip

    def _at_layer(self, hidden_states: tuple[torch.Tensor, ...]) -> torch.Tensor:
        if self.layer >= len(hidden_states):
            raise ValueError(
                f"`layer={self.layer}` exceeds the {len(hidden_states) - 1} layers of {self.name_or_path!r}. Lower "
                "`layer`, or leave it out for the last."
            )
        return hidden_states[self.layer]


def _messages(role: str, value: str | list[dict]) -> list[dict]:
    return [{"role": role, "content": value}] if isinstance(value, str) else value


def _check_choice(name: str, value: str, allowed: Iterable[str]) -> None:
    if value not in allowed:
        raise ValueError(f"`{name}={value!r}` is unknown. Choose one of {list(allowed)}.")


def _check_name(name) -> None:
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"`name_or_path={name!r}` names no embedder. Name one on the Hub, or its folder.")

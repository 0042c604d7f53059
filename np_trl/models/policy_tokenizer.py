"""The tokenizer that a policy carries, so that texts can be passed to it without one."""

from functools import cached_property
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from .weights import SOURCE_ARGUMENTS


class TokenizerSource:
    """
    Where a tokenizer is loaded from when it is first needed. It brings no code that would be run.

    It is no part of a model: copies of a model share it, and a pickle holds the place alone, without the token for the Hub.

    Args:
        path (`str` or `Path`, *optional*):
            Folder or name on the Hub. None, of a model that was not loaded.
        kwargs:
            Arguments of `from_pretrained` that say where on the Hub it is, such as `revision`.
    """

    def __init__(self, path: str | Path | None = None, **kwargs):
        self.path = path
        self.kwargs = {name: value for name, value in kwargs.items() if name in SOURCE_ARGUMENTS and value is not None}

    def __deepcopy__(self, memo: dict) -> "TokenizerSource":
        return self

    def __getstate__(self) -> dict:
        kwargs = {name: value for name, value in self.kwargs.items() if name != "token"}
        return {"path": self.path, "kwargs": kwargs}

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """
        The tokenizer.

        Raises:
            `ValueError`: if there is none, or it has no tokens but special ones.
        """
        fix = "Pass the policy's tokenizer as `tokenizer`, or have the policy carry it: `policy.set_tokenizer(tokenizer)`."
        if not self.path:
            raise ValueError(f"This policy was not loaded from a folder or the Hub, so it has no tokenizer. {fix}")
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.path, **self.kwargs)
        except (OSError, ValueError, ImportError, KeyError) as error:
            why = " ".join(str(error).split())[:200]
            raise ValueError(
                f"No tokenizer can be loaded from {str(self.path)!r}, as this policy was ({why}). {fix}"
            ) from error
        # what transformers makes of a folder without the files of one
        if set(tokenizer.get_vocab().values()) <= set(tokenizer.all_special_ids):
            raise ValueError(f"There is no tokenizer in {str(self.path)!r}, from which this policy was loaded. {fix}")
        return tokenizer


class TokenizerMixin:
    """Mix into a policy, before the class that loads its weights."""

    _tokenizer_source = TokenizerSource()

    def get_tokenizer(self) -> PreTrainedTokenizerBase:
        """
        Get the policy's tokenizer: that which was set, or that beside the weights, which is loaded when it is first needed.

        Raises:
            `ValueError`: if there is none.
        """
        return self._tokenizer_source.tokenizer

    def set_tokenizer(self, tokenizer: PreTrainedTokenizerBase | str | Path, **kwargs) -> None:
        """
        Have the policy carry a tokenizer. It is not saved with the policy: save it beside it.

        Args:
            tokenizer ([`~transformers.PreTrainedTokenizerBase`], `str` or `Path`):
                A tokenizer, or the path that it is loaded from when it is first needed.
            kwargs:
                Arguments of `from_pretrained` that say where on the Hub the path is, such as `revision`.
        """
        if isinstance(tokenizer, (str, Path)):
            self._tokenizer_source = TokenizerSource(tokenizer, **kwargs)
        else:
            self._tokenizer_source = TokenizerSource(tokenizer.name_or_path)
            self._tokenizer_source.tokenizer = tokenizer

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """Load a policy, which carries the tokenizer beside it: [`~transformers.PreTrainedModel.from_pretrained`]."""
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if pretrained_model_name_or_path is not None:
            model.set_tokenizer(pretrained_model_name_or_path, **kwargs)
        return loaded

"""The trunk: the lower layers of a policy, which embed the users' options and must stay those of the base model."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from datasets import Dataset
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from np_trl.data.distinct_options import DistinctOptions
from np_trl.data.pair_codes import TOKEN_COLUMNS
from np_trl.models.film import skip_layers


def check_trunk(model: nn.Module) -> None:
    """
    Check that nothing in the trunk is trained, so that options are embedded in use as they were in training.

    Raises:
        `ValueError`: if an adapter reaches into it, or a parameter of it is trained.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    context_layer, num_layers = base.config.context_layer, base.config.num_hidden_layers
    for name, module in trunk_modules(base):
        trained = _trained(module)
        if trained or _is_adapted(module):
            raise ValueError(
                f"The adapter reaches `{name}`{f' ({trained[0]!r} is trained)' if trained else ''}, but `context_layer="
                f"{context_layer}`: the layers below it embed the users' options and must stay those of the base model. Set "
                f"`layers_to_transform=list(range({context_layer}, {num_layers}))` in `peft_config` and leave out what trains "
                '`embed_tokens` or all layers (`modules_to_save`, `bias="all"`), or lower `context_layer`.'
            )


def _trained(module: nn.Module) -> list[str]:
    return [key for key, parameter in module.named_parameters() if parameter.requires_grad]


def _is_adapted(module: nn.Module) -> bool:
    return any(isinstance(part, (BaseTunerLayer, AuxiliaryTrainingWrapper)) for part in module.modules())


def freeze_trunk(model: PreTrainedModel) -> None:
    """Freeze the trunk of a policy that is trained without an adapter."""
    for _, module in trunk_modules(model):
        module.requires_grad_(False)


def trunk_modules(model: PreTrainedModel) -> list[tuple[str, nn.Module]]:
    """The token embeddings and the layers below `context_layer`, with their names."""
    layers = [(f"layers.{index}", model.model.layers[index]) for index in range(model.config.context_layer)]
    return [("embed_tokens", model.get_input_embeddings()), *layers]


class SharedTrunk:
    """
    The trunk of a policy, which is that of its reference policy too, and is not trained: what leaves it depends on the tokens
    alone, so it is not computed again in a step, nor, where it was kept, in the run.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The policy without its adapter, whose layers the reference policy shares.

    Attributes:
        max_bytes (`int`): how much is kept for the whole run.
    """

    max_bytes = 2**30

    def __init__(self, model: PreTrainedModel):
        self.trunk = list(model.model.layers[: model.config.context_layer])
        self.first = model.model.layers[model.config.context_layer]
        # tokens of a row -> the hidden states `(T, H)` that leave the trunk: in the run, and in a step
        self._kept, self._num_bytes, self._recent = {}, 0, None

    @staticmethod
    def exists(model: PreTrainedModel) -> bool:
        """Whether the trunk of a policy is that of the base model, whoever the user is."""
        modules = [module for _, module in trunk_modules(model)]
        is_modulated = model.config.film_site != "lora" and model.config.first_film_layer < model.config.context_layer
        return not is_modulated and not any(map(_trained, modules)) and not any(map(_is_adapted, modules))

    @contextmanager
    def step(self) -> Iterator[None]:
        """What is run in here passes each row through the trunk once."""
        self._recent = {}
        try:
            yield
        finally:
            self._recent = None

    @contextmanager
    def keep(self, input_ids: torch.LongTensor, attention_mask: torch.Tensor) -> Iterator[None]:
        """Keep for the run what leaves the trunk in a pass of these rows `(B, T)`, padded on the right, if there is room."""
        keys = _row_keys(input_ids, attention_mask)

        def enter(hidden_states: torch.Tensor) -> torch.Tensor:
            for key, states, length in zip(keys, hidden_states, attention_mask.sum(dim=1).tolist(), strict=True):
                num_bytes = length * states[0].nbytes
                if key not in self._kept and self._num_bytes + num_bytes <= self.max_bytes:
                    self._kept[key] = states[:length].detach().clone()
                    self._num_bytes += num_bytes
            return hidden_states

        with self._entering(enter):
            yield

    def run(self, model: Callable) -> Callable:
        """Run a model such that it passes by the trunk where all rows of a batch have been through it."""

        def forward(input_ids: torch.LongTensor, attention_mask: torch.Tensor, **kwargs):
            keys, length = _row_keys(input_ids, attention_mask), input_ids.shape[1]
            known = self._find(keys, length)

            def enter(hidden_states: torch.Tensor) -> torch.Tensor:
                if known is not None:
                    return known
                if self._recent is not None:  # by their padded length, too: so that both passes are bit-identical
                    self._recent |= {(key, length): row for key, row in zip(keys, hidden_states.detach(), strict=True)}
                return hidden_states

            with skip_layers(self.trunk if known is not None else []), self._entering(enter):
                return model(input_ids=input_ids, attention_mask=attention_mask, **kwargs)

        return forward

    def _find(self, keys: list[bytes], length: int) -> torch.Tensor | None:
        """The hidden states `(B, T, H)` of rows, zeros in the padding; `None` if any row is unknown."""
        recent = self._recent or {}
        states = [recent.get((key, length), self._kept.get(key)) for key in keys]
        if any(state is None for state in states):
            return None
        states = torch.stack([nn.functional.pad(state, (0, 0, 0, length - len(state))) for state in states])
        # reentrant checkpointing has gradients only where an input of the layer has
        return states.requires_grad_(getattr(self.first, "gradient_checkpointing", False) and torch.is_grad_enabled())

    @contextmanager
    def _entering(self, function: Callable) -> Iterator[None]:
        self.first.enter = function
        try:
            yield
        finally:
            self.first.enter = None


def _row_keys(input_ids: torch.LongTensor, attention_mask: torch.Tensor) -> list[bytes]:
    """The tokens of each row, without its padding."""
    lengths = attention_mask.sum(dim=1).tolist()
    return [row[:length].tobytes() for row, length in zip(input_ids.cpu().numpy(), lengths, strict=True)]


@torch.no_grad()
def embed_with_trunk(
    model: nn.Module,
    dataset: Dataset,
    collate: Callable,
    accelerator: Accelerator,
    batch_size: int,
    name: str,
    shared: SharedTrunk | None = None,
) -> torch.Tensor:
    """
    Embed every distinct option of a dataset once, each process its share.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            A policy, not wrapped, with its weights gathered.
        dataset ([`~datasets.Dataset`]):
            Tokenised pairs.
        collate (`Callable`):
            TRL's collator of preference pairs.
        accelerator ([`~accelerate.Accelerator`]):
            The processes, which all call this.
        batch_size (`int`):
            Pairs that a process embeds at once.
        name (`str`):
            What to call the dataset beside the progress bar.
        shared ([`SharedTrunk`], *optional*):
            Where hidden states are kept.

    Returns:
        `torch.Tensor` of shape `(rows, 2, H)`: chosen, rejected.
    """
    was_training = model.training
    model.eval()
    distinct = DistinctOptions(dataset)
    rows = distinct.pairs.select_columns(list(TOKEN_COLUMNS))
    lengths = [len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in rows]
    batches = torch.tensor(lengths).argsort().split(batch_size)
    embeds = torch.zeros(len(rows), 2, model.config.hidden_size)
    # where weights are sharded they are gathered from all processes, so all run as often
    for first in tqdm(range(0, len(batches), accelerator.num_processes), desc=f"Embedding the options of {name}"):
        number = first + accelerator.process_index
        indices = batches[min(number, len(batches) - 1)]
        batch = send_to_device(collate([rows[int(index)] for index in indices]), accelerator.device)
        tokens = batch["input_ids"], batch["attention_mask"]
        with nullcontext() if shared is None else shared.keep(*tokens):
            options = model.embed_options(*tokens, batch["completion_mask"])
        if number < len(batches):
            embeds[indices] = torch.stack(options.chunk(2), dim=1).cpu()
    model.train(was_training)
    if accelerator.num_processes > 1:
        parts = embeds.split(65_536)  # as much as goes through an accelerator at once
        embeds = torch.cat([accelerator.reduce(part.to(accelerator.device)).cpu() for part in parts])
    return torch.from_numpy(distinct.spread(embeds.numpy()))

"""The description of a run: its data, its model, how its tasks are drawn, and how it learns. A checkpoint carries it."""

import json
from dataclasses import fields

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from datasets import Dataset, IterableDataset
from peft import PeftModel
from torch import nn

from np_trl.data.pair_codes import TOKEN_COLUMNS
from np_trl.data.preference_rows import EMBED_COLUMNS, ID_COLUMNS
from np_trl.models.configuration_film import LATER_FIELDS


# columns that training reads
_COLUMNS = ("user_id", *TOKEN_COLUMNS, *ID_COLUMNS, *EMBED_COLUMNS)

# fields of a model's or an adapter's configuration that say where it is and how it was loaded, or that training sets later
_PASSING_FIELDS = {
    "architectures",
    "auto_map",
    "base_model_name_or_path",
    "bos_token_id",
    "dtype",
    "embedder",
    "eos_token_id",
    "format_version",
    "inference_mode",
    "pad_token_id",
    "peft_version",
    "quantization_config",
    "reference_name_or_path",
    "reference_revision",
    "revision",
    "transformers_version",
    "use_cache",
}

# training arguments that decide which tasks are drawn
_TASK_ARGUMENTS = ("seed", "data_seed", "num_targets", "min_context", "max_context", "context_in_target")
# training arguments that decide how the model learns from them
_LEARNING_ARGUMENTS = {
    "beta",
    "center_rewards_coefficient",
    "kl_weight",
    "label_smoothing",
    "latent_objective",
    "learning_rate",
    "loss_type",
    "loss_weights",
    "lr_scheduler_type",
    "max_grad_norm",
    "np_learning_rate",
    "num_latent_samples",
    "optim",
    "warmup_steps",
    "weight_decay",
}


def describe_run(
    args, dataset: Dataset | IterableDataset, model: nn.Module, base_weights: dict[str, str | None] | None
) -> dict[str, dict]:
    """
    Describe a run, such that only a run that would train otherwise is described otherwise: places of files, numbers of
    processes and the length of the run do not matter.

    Args:
        args ([`ContextConfigMixin`]):
            Training arguments.
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            The training set, tokenised and embedded.
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            What is trained.
        base_weights (`dict[str, str | None]`, *optional*):
            Hashes of the weights that training starts from and does not keep: [`hash_base_weights`].

    Returns:
        `dict[str, dict]`: JSON values under `data`, `model`, `tasks` and `learning`.
    """
    tasks = {name: getattr(args, name) for name in _TASK_ARGUMENTS}
    tasks["tasks per update"] = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    described = {
        "data": _describe_data(dataset, model.config),
        "model": {"config": _lasting_fields(model.config), "base_weights": base_weights or {}},
        "tasks": tasks,
        "learning": {
            field.name: getattr(args, field.name) for field in fields(args) if field.name in _LEARNING_ARGUMENTS
        },
    }
    if isinstance(model, PeftModel):
        described["model"]["adapter"] = _lasting_fields(model.active_peft_config)
    return json.loads(
        json.dumps(described, default=lambda value: sorted(value) if isinstance(value, set) else str(value))
    )


def complete_facts(facts: dict) -> dict:
    """Complete the description of an earlier version's run by what held for the fields that came later."""
    config = facts["model"]["config"]
    if "film_site" not in config:
        return facts
    return {**facts, "model": {**facts["model"], "config": {**_lasting_fields(LATER_FIELDS), **config}}}


def find_differences(then: dict, now: dict, name: str = "") -> dict[str, tuple]:
    """
    Compare two descriptions of runs.

    Args:
        then, now (`dict`):
            What [`describe_run`] returned. What one of them says nothing of, or says `None` of as a hash that could not be
            taken, is not compared.

    Returns:
        `dict[str, tuple]`: names of what differs, such as `tasks.seed`, with both values.
    """
    found = {}
    for key in [key for key in now if key in then]:
        path = f"{name}.{key}" if name else key
        if isinstance(then[key], dict) and isinstance(now[key], dict):
            found |= find_differences(then[key], now[key], path)
        elif then[key] != now[key] and not ("base_weights" in path and None in (then[key], now[key])):
            found[path] = (then[key], now[key])
    return found


def show_differences(differences: dict[str, tuple], limit: int = 6) -> str:
    """Say what differs, in words."""
    shown = [f"{name} was {_shorten(then)} and is {_shorten(now)}" for name, (then, now) in differences.items()]
    more = [] if len(shown) <= limit else [f"and {len(shown) - limit} more"]
    return "; ".join(shown[:limit] + more)


def hash_rows(dataset: Dataset, columns: list[str]) -> str:
    """
    Hash columns of a dataset by what they hold: neither the place of the data nor how Arrow stores them matters.

    Args:
        dataset ([`~datasets.Dataset`]):
            Rows. All of them are read.
        columns (`list[str]`):
            Which columns.

    Returns:
        `str`: 16 digits.
    """
    digest = xxhash.xxh3_64()
    for table in dataset.select_columns(columns).with_format("arrow").iter(batch_size=1000):
        for name in columns:
            _update(digest, table.column(name).combine_chunks(), name)
    return digest.hexdigest()


def _describe_data(dataset: Dataset | IterableDataset, config) -> dict:
    if isinstance(dataset, IterableDataset):  # which nobody reads before it is trained on
        return {"is_stream": True}
    columns = [name for name in _COLUMNS if name in dataset.column_names]
    if set(TOKEN_COLUMNS) <= set(columns) and config.to_dict().get("context_source") == "trunk":
        # computed from the tokens, and not bit-identical on every machine
        columns = [name for name in columns if name not in EMBED_COLUMNS]
    users = len(dataset.unique("user_id"))
    return {"is_stream": False, "pairs": len(dataset), "users": users, "contents": hash_rows(dataset, columns)}


def _lasting_fields(config) -> dict:
    """The fields of a configuration, and of those in it, that change what the model computes."""
    settings = config if isinstance(config, dict) else config.to_dict()
    return {
        name: _lasting_fields(value) if isinstance(value, dict) else value
        for name, value in settings.items()
        if name not in _PASSING_FIELDS and not str(name).startswith("_")
    }


def _update(digest: xxhash.xxh3_64, values: pa.Array, name: str) -> None:
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    while (
        pa.types.is_list(values.type)
        or pa.types.is_large_list(values.type)
        or pa.types.is_fixed_size_list(values.type)
    ):
        digest.update(np.ascontiguousarray(pc.list_value_length(values).fill_null(-1).cast(pa.int64())))
        values = values.flatten()
    if pa.types.is_floating(values.type):
        digest.update(values.cast(pa.float32()).to_numpy(zero_copy_only=False).copy())
    elif pa.types.is_integer(values.type) and name != "user_id":
        digest.update(values.cast(pa.int64()).to_numpy(zero_copy_only=False).copy())
    else:
        digest.update(json.dumps([str(value) for value in values.to_pylist()]).encode())


def _shorten(value) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

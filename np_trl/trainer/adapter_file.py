"""The files of a saved adapter, checked before they are used."""

import dataclasses
import json
from pathlib import Path

import torch
import xxhash
from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors import SafetensorError, safe_open
from transformers import GenerationConfig
from transformers.utils import cached_file

from np_trl.models import ContextEncoder
from np_trl.models.checkpoint_format import check_format
from np_trl.models.configuration_context_encoder import ContextEncoderConfig
from np_trl.models.configuration_film import FILM_FIELDS, LATER_FIELDS
from np_trl.models.modulation import needs_lora
from np_trl.models.weights import WHY_SAFETENSORS
from np_trl.weight_identity import COMPARED_DTYPES


CONFIG_NAME, WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"

# the name that TRL gives to a copy of an adapter that is trained further, as it was when that began: the reference policy
REFERENCE = "ref"

# fields of a base's configuration that training copies from the tokenizer
TOKEN_FIELDS = ("bos_token_id", "eos_token_id", "pad_token_id")

# types of the fields of `film` in an adapter's configuration
_RECORD_TYPES = {
    "peft_type": str,
    "base_config": dict,
    "base_weights": dict,
    "film_site": str,
    "film_layers": str,
    "num_gates": int | None,
    "context_layer": int,
    "option_pooling": str,
    "context_source": str,
    "context_max_length": int | None,
    "context_truncation": str,
    "context_config": dict,
    "dpo_beta": int | float,
    "reference_name_or_path": str | None,
    "reference_revision": str | None,
    "base_dtypes": list,
    "base_subfolder": str,
    "generation_config": dict,
    "reference": str | None,
    "tokens": dict,
    "weights": str,
}
# those that adapters of np_trl 0.1.0 do not have
LATER_RECORDS = ("base_dtypes", "base_subfolder", "generation_config", "reference", "tokens", "weights")
# adapters are saved in these dtypes
_ADAPTER_DTYPES = (*COMPARED_DTYPES, torch.float16, torch.float64)

_ENCODER = "base_model.model.model.context_encoder."
_FILM = "base_model.model.model.film.weight"


def read_adapter(path: str, **kwargs) -> tuple[PeftConfig, dict]:
    """
    Read the configuration of a saved adapter, and check its weights.

    Args:
        path (`str`):
            Folder or name on the Hub.
        kwargs:
            Passed to `cached_file`, such as `revision`.

    Returns:
        `tuple[PeftConfig, dict]`: PEFT's config, and what [`FiLMPeftModel`] wrote of FiLM and the base.

    Raises:
        `ValueError`: if it holds no FiLM, is newer than this code, or says or weighs what no saved adapter does.
        `OSError`: if its weights are no safetensors, or not whole.
    """
    adapter = _read_config(path, find_file(path, CONFIG_NAME, **kwargs))
    film = adapter.pop("film", None)
    if film is None:
        raise ValueError(
            f"The adapter in {path!r} holds no FiLM: it was trained on a plain model. Load it with "
            "`AutoPeftModelForCausalLM`, or train one with `NPDPOTrainer`."
        )
    _check_record(path, film)
    shapes = _read_shapes(path, **kwargs)
    _check_sizes(path, film, shapes)
    return _make_config(path, {**adapter, "peft_type": film["peft_type"]}, shapes), film


def _read_config(path: str, file: str) -> dict:
    try:
        config = json.loads(Path(file).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"The `{CONFIG_NAME}` in {path!r} is no JSON or not whole ({error}). Copy the file again, or save the adapter again."
        ) from None  # of a kind that says nothing of the file
    if not isinstance(config, dict):
        raise ValueError(
            f"The `{CONFIG_NAME}` in {path!r} is {_shorten(config)}, and should be a JSON object. Take the one that was saved "
            "with the weights."
        )
    return config


def _check_record(path: str, film: dict) -> None:
    """Check the fields of FiLM and of the base."""
    fix = f"Take the `{CONFIG_NAME}` that was saved with the weights."
    if not isinstance(film, dict):
        raise ValueError(f"The adapter in {path!r} has `film={_shorten(film)}`, which should be a JSON object. {fix}")
    check_format(film.get("format_version"))
    required = ("peft_type", "base_config", "base_weights", *FILM_FIELDS)
    missing = [field for field in required if field not in (*film, *LATER_FIELDS)]
    if missing:
        raise ValueError(f"The adapter in {path!r} says nothing of {missing}, so its FiLM is unknown. {fix}")
    for field, kind in _RECORD_TYPES.items():
        value = film.get(field)
        if field in film and (not isinstance(value, kind) or isinstance(value, bool)):
            raise ValueError(
                f"The adapter in {path!r} has `film.{field}={_shorten(value)}`, which is no {_name(kind)}. {fix}"
            )
    _check_base_weights(path, film["base_weights"], {str(dtype) for dtype in film.get("base_dtypes", ["unknown"])})
    _check_use(path, film)


def _check_base_weights(path: str, hashes: dict, dtypes: set[str]) -> None:
    """Check that an adapter says by which weights its base is known, unless they were of dtypes that cannot be compared."""
    fix = f"Take the `{CONFIG_NAME}` that was saved with the weights."
    if not hashes or not all(value is None or isinstance(value, str) for value in hashes.values()):
        raise ValueError(
            f"The adapter in {path!r} has `film.base_weights={_shorten(hashes)}`, which should be a hash for each part of the "
            f"base. {fix}"
        )
    if set(hashes.values()) == {None} and dtypes <= {str(dtype) for dtype in COMPARED_DTYPES}:
        raise ValueError(
            f"The adapter in {path!r} has no hash of its base's weights, though they were {sorted(dtypes)} and can be "
            f"compared: nobody could tell whether it belongs to its base. {fix}"
        )


def _check_use(path: str, film: dict) -> None:
    """Check the fields of tokens, generation and the reference policy."""
    fix = f"Take the `{CONFIG_NAME}` that was saved with the weights."
    tokens, reference = film.get("tokens", {}), film.get("reference")
    wrong = [name for name, value in tokens.items() if name not in TOKEN_FIELDS or not _is_token(value)]
    if wrong:
        raise ValueError(f"The adapter in {path!r} has `film.tokens={_shorten(tokens)}`: {wrong} are wrong. {fix}")
    if reference not in (None, REFERENCE):
        raise ValueError(f"The adapter in {path!r} has `film.reference={reference!r}`, not {REFERENCE!r}. {fix}")
    try:
        GenerationConfig.from_dict(film.get("generation_config", {}))
    except Exception as error:  # of whatever kind: it has checks of its own
        raise ValueError(
            f"The adapter in {path!r} has a `film.generation_config` that fails ({error}). {fix}"
        ) from error


def _read_shapes(path: str, **kwargs) -> dict[str, tuple[int, ...]]:
    """
    Read the shapes of an adapter's weights, and check that the weights are numbers.

    Raises:
        `ValueError`: if there are some that are not finite, or of a dtype that is never trained.
        `OSError`: if its weights are no safetensors, or not whole.
    """
    file = find_file(path, WEIGHTS_NAME, **kwargs)
    if file is None:
        raise OSError(
            f"{path!r} has no `{WEIGHTS_NAME}`, and {WHY_SAFETENSORS} Save the adapter again with `save_pretrained`."
        )
    shapes = {}
    try:
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():
                weight = weights.get_tensor(name)
                if weight.dtype not in _ADAPTER_DTYPES or not weight.isfinite().all():
                    found = weight.dtype if weight.dtype not in _ADAPTER_DTYPES else "NaN or infinite values"
                    raise ValueError(
                        f"The weight {name!r} of the adapter in {path!r} has {found}, and must be finite numbers of one of "
                        f"{[str(dtype) for dtype in _ADAPTER_DTYPES]}. Take an earlier checkpoint, or save the adapter again."
                    )
                shapes[name] = tuple(weight.shape)
    except SafetensorError as error:
        raise OSError(
            f"The weights of the adapter {path!r} are not whole ({error}). Copy the file again, or remove it from the "
            "cache of the Hub."
        ) from error
    return shapes


def _check_sizes(path: str, film: dict, shapes: dict[str, tuple[int, ...]]) -> None:
    """Check the sizes that an adapter states against those of its weights, before anything of such a size is made."""
    try:
        config = ContextEncoderConfig(**film["context_config"])
        with torch.device("meta"):
            encoder = ContextEncoder(config)
    except Exception as error:  # of whatever kind: a configuration has checks of its own
        raise ValueError(
            f"The adapter in {path!r} has `film.context_config={_shorten(film['context_config'])}`, which fails: {error}. Take "
            f"the `{CONFIG_NAME}` that was saved with the weights."
        ) from error
    expected = {f"{_ENCODER}{name}": tuple(weight.shape) for name, weight in encoder.state_dict().items()}
    if _FILM not in shapes:
        raise ValueError(
            f"The adapter in {path!r} lacks weights {_FILM!r}, which would be random: it knows no users. Save it again with "
            f"`save_pretrained`, or take the weights that were saved with its `{CONFIG_NAME}`."
        )
    outputs = film["num_gates"] if needs_lora(film["film_site"]) else shapes[_FILM][0]
    expected[_FILM] = (outputs, config.latent_size)
    for name, shape in expected.items():
        if name in shapes and shapes[name] != shape:
            raise ValueError(
                f"The weight {name!r} of the adapter in {path!r} has the shape {shapes[name]}, but by "
                f"`film.context_config` and `film.num_gates` in `{CONFIG_NAME}` it has {shape}: the two files were not saved "
                "together. Take those that were."
            )


def _make_config(path: str, adapter: dict, shapes: dict[str, tuple[int, ...]]) -> PeftConfig:
    """Make PEFT's configuration of what an adapter says, if it is of a kind that can have FiLM."""
    fix = f"Take the `{CONFIG_NAME}` that was saved with the weights."
    if adapter["peft_type"] not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise ValueError(
            f"The adapter in {path!r} has `film.peft_type={adapter['peft_type']!r}`, which PEFT does not know. {fix}"
        )
    try:
        config = PeftConfig.from_peft_type(**adapter)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"The adapter in {path!r} has a configuration that PEFT does not take: {type(error).__name__}: {error}. {fix}"
        ) from error
    if config.is_prompt_learning or adapter["peft_type"] == "XLORA" or adapter.get("megatron_config") is not None:
        raise ValueError(
            f"The adapter in {path!r} is of type {adapter['peft_type']!r} with `megatron_config="
            f"{_shorten(adapter.get('megatron_config'))}`: it would change the prompt, load other adapters or import other code, "
            f"and none such is trained with FiLM. {fix}"
        )
    numbers = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if type(field.default) in (int, float)
    }
    wrong = {name: value for name, value in numbers.items() if not isinstance(value, int | float)}
    if wrong:
        raise ValueError(f"The adapter in {path!r} has {_shorten(wrong)}, which should be numbers. {fix}")
    ranks = adapter.get("rank_pattern") or {}
    ranks = {"r": numbers.get("r"), **ranks} if isinstance(ranks, dict) else {"rank_pattern": ranks}
    smallest = 0 if adapter["peft_type"] == "OFT" else 1  # which has blocks instead
    largest = max((side for shape in shapes.values() for side in shape), default=0)
    wrong = {
        name: rank
        for name, rank in ranks.items()
        if not (rank is None or type(rank) is int and smallest <= rank <= largest)
    }
    if wrong:
        raise ValueError(
            f"The adapter in {path!r} has `r` or `rank_pattern` with {_shorten(wrong)}, which should be numbers from {smallest} to {largest}, the largest "
            f"side of its weights. {fix}"
        )
    return config


def _is_token(value) -> bool:
    tokens = value if isinstance(value, list) else [value]
    return all(token is None or type(token) is int for token in tokens)


def _name(kind) -> str:
    return getattr(kind, "__name__", str(kind))


def _shorten(value) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def hash_file(path: str | Path) -> str:
    """Hash a file: 16 digits."""
    with open(path, "rb") as file:
        digest = xxhash.xxh3_64()
        while chunk := file.read(2**24):
            digest.update(chunk)
    return digest.hexdigest()


def find_file(path: str, name: str, **kwargs) -> str | None:
    """Find a file of a folder or a repository on the Hub; `None` if it has none. `kwargs` are those of `cached_file`."""
    return cached_file(path, name, _raise_exceptions_for_missing_entries=False, **kwargs)

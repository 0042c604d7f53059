"""Files of a user's choices, as the scripts take them."""

import json
from collections.abc import Iterable
from pathlib import Path

import torch

from np_trl.files import write_whole
from np_trl.models.texts import EMBED_COLUMNS, ID_COLUMNS, SIDES, canonical, check_pair


# of a pair, what models read
_READ = ("prompt", *SIDES, "tools", "chat_template_kwargs", *ID_COLUMNS, *EMBED_COLUMNS)


def name_users(paths: Iterable[str | Path]) -> dict[str, Path]:
    """
    Name users by their files.

    Args:
        paths (`Iterable[str | Path]`):
            A file of each user.

    Returns:
        `dict[str, Path]`: the files by their names without the ending.

    Raises:
        `ValueError`: if two users would have the same name.
    """
    named = {}
    for path in map(Path, paths):
        if path.stem in named:
            raise ValueError(
                f"{str(named[path.stem])!r} and {str(path)!r} would both be the user {path.stem!r}. Rename one of the files."
            )
        named[path.stem] = path
    return named


def read_pairs(path: str | Path) -> list[dict]:
    """
    Read a user's choices.

    Args:
        path (`str` or `Path`):
            A JSON file, `{"pairs": [{"prompt": ..., "chosen": ..., "rejected": ...}, ...]}`, in UTF-8. The pairs may be none:
            an empty list, or `null`.

    Returns:
        `list[dict]`: preference pairs.

    Raises:
        `ValueError`: if the file is damaged or holds no pairs, or training would refuse one of them.
        `FileNotFoundError`: if there is no such file.
    """
    form = 'Write {"pairs": [{"prompt": ..., "chosen": ..., "rejected": ...}]}.'
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"There is no file {str(path)!r} with the choices of a user. {form}") from error
    except (ValueError, RecursionError) as error:  # no UTF-8, or no JSON
        raise ValueError(
            f"{str(path)!r} holds no pairs: it cannot be read as JSON ({str(error)[:80]}). {form}"
        ) from error
    if not isinstance(content, dict) or "pairs" not in content:
        # a key may be the text of a user
        found = f"the keys {str(sorted(content))[:60]}" if isinstance(content, dict) else f"a {type(content).__name__}"
        raise ValueError(f"{str(path)!r} holds {found}, but must be an object with `pairs`. {form}")
    pairs = [] if content["pairs"] is None else content["pairs"]
    if not isinstance(pairs, list):
        raise ValueError(f"`pairs` in {str(path)!r} is a {type(pairs).__name__}, but must be a list. {form}")
    for index, pair in enumerate(pairs):
        check_pair(pair, f"Pair {index} in {str(path)!r}", SIDES)
    return pairs


def write_pairs(path: str | Path, pairs: Iterable[dict]) -> None:
    """
    Write a user's choices, as [`read_pairs`] reads them. The texts stand in the file as they are: keep it as personal data.

    Args:
        path (`str` or `Path`):
            A JSON file in a folder that exists. It appears when it is complete; until then the old one stays.
        pairs (`Iterable[dict]`):
            Preference pairs of texts. What no model reads, such as `user_id`, is left out.

    Raises:
        `ValueError`: if training would refuse a pair, or it holds what JSON cannot say. Nothing is written then.
    """
    written = []
    for index, pair in enumerate(pairs):
        where = f"Pair {index} for {str(path)!r}"
        check_pair(pair, where, SIDES)
        kept = {name: pair[name] for name in _READ if pair.get(name) is not None}
        kept |= {name: torch.as_tensor(kept[name]).tolist() for name in EMBED_COLUMNS if name in kept}
        try:
            written.append(json.dumps(canonical(kept), ensure_ascii=False, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{where} cannot be written as JSON ({error}). Give texts and lists of numbers."
            ) from error
    content = ",\n  ".join(written)
    write_whole(path, f'{{"pairs": [\n  {content}\n]}}\n' if written else '{"pairs": []}\n')

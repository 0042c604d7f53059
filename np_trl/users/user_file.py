"""A user's choices in a file, as the scripts take them."""

import json
from pathlib import Path

from np_trl.models.texts import SIDES, check_pair


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
    except (ValueError, RecursionError) as error:  # no UTF-8, or no JSON
        raise ValueError(
            f"{str(path)!r} holds no pairs: it cannot be read as JSON ({str(error)[:80]}). {form}"
        ) from error
    if not isinstance(content, dict) or "pairs" not in content:
        found = f"the keys {sorted(content)[:5]}" if isinstance(content, dict) else f"a {type(content).__name__}"
        raise ValueError(f"{str(path)!r} holds {found}, but must be an object with `pairs`. {form}")
    pairs = [] if content["pairs"] is None else content["pairs"]
    if not isinstance(pairs, list):
        raise ValueError(f"`pairs` in {str(path)!r} is a {type(pairs).__name__}, but must be a list. {form}")
    for index, pair in enumerate(pairs):
        check_pair(pair, f"Pair {index} in {str(path)!r}", SIDES)
    return pairs

"""A user's choices, given as preference pairs of texts."""

SIDES = ("chosen", "rejected")


def check_pairs(pairs: list[dict], required: tuple[str, ...]) -> None:
    """
    Check that preference pairs have what is read of them.

    Args:
        pairs (`list[dict]`):
            Preference pairs.
        required (`tuple[str, ...]`):
            Keys that every pair must have.

    Raises:
        `ValueError`: if a pair lacks a key.
    """
    for index, pair in enumerate(pairs):
        missing = [key for key in required if key not in pair]
        if missing:
            raise ValueError(f"Pair {index} has no {missing}. Each pair needs {list(required)}.")

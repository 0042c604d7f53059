"""Checks of whole numbers that are given by name."""


def check_at_least(smallest: int, **numbers: int) -> None:
    """
    Check that numbers are whole and not too small.

    Args:
        smallest (`int`):
            The smallest that is allowed.
        numbers:
            The numbers by their names.

    Raises:
        `ValueError`: if one is no whole number, or is too small.
    """
    for name, number in numbers.items():
        if not is_whole(number):
            raise ValueError(f"`{name}={number!r}` must be a whole number, such as {smallest}.")
        if number < smallest:
            raise ValueError(f"`{name}={number}` must be at least {smallest}. Raise it.")


def is_whole(value) -> bool:
    """Whether a value is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)

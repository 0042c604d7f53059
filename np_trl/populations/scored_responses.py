"""
Simulated users of responses that carry several scores (sections 4.2 and 4.3.2, appendices D.1 and D.2 of the paper).

A user is a weight for each score, and chooses of two responses to a prompt the one of larger weighted score: with one
weight, a mode of behaviour; with a point of the simplex, a mixture. The scores themselves are never shown.
"""

import logging

import numpy as np
import pyarrow as pa
from datasets import Dataset

from np_trl.data.loading import split_by_hash


logger = logging.getLogger(__name__)


def simulate_users(
    items: Dataset,
    scores: list[str],
    weights: np.ndarray,
    pairs_per_user: int | None,
    conflict_rate: float | None = None,
    seed: int = 0,
    standardize: bool = True,
) -> Dataset:
    """
    Draw the choices of simulated users between responses to the same prompt.

    Users draw from all pairs of a prompt's responses, without repetition, but for those on which they are indifferent.
    For users of other prompts, split `items` by prompt first.

    Args:
        items ([`~datasets.Dataset`]):
            One row a response, with `prompt`, `response` and the scores. Of equal responses to a prompt the first counts.
        scores (`list[str]`):
            The columns of the scores.
        weights (`np.ndarray` of shape `(U, S)`):
            For each user the weights of the S scores.
        pairs_per_user (`int`, *optional*):
            Choices of each user. `None`: as many as there are, at the rate of conflicts that is asked for.
        conflict_rate (`float`, *optional*):
            Share of conflicting pairs (Def. 4.2) among the choices of each user: those which two of the scores decide
            differently, whatever the user's weights. As it happens if not set.
        seed (`int`, *optional*, defaults to `0`):
            Seed of everything drawn.
        standardize (`bool`, *optional*, defaults to `True`):
            Whether scores are brought to the same spread. Otherwise they are weighed as they are.

    Returns:
        [`~datasets.Dataset`] with the columns `user_id` (the row of `weights`), `prompt`, `chosen`, `rejected`; and, for
        evaluation only, `weights`, `group` (the one score that a user goes by, or `"mixture"`) and `is_conflicting`.

    Raises:
        `ValueError`: if a column is absent, a score is missing, the weights do not fit the scores, the rate is no share, or
        a user has too few pairs to choose from.
    """
    weights = np.asarray(weights, dtype=float)
    _check_arguments(items, scores, weights, conflict_rate)
    prompts, responses = _read(items, "prompt"), _read(items, "response")
    pairs = _pair_responses(prompts, responses)  # (N, 2)
    values = _read_scores(items, scores, standardize)  # (items, S)
    differences = values[pairs[:, 0]] - values[pairs[:, 1]]  # (N, S)
    is_conflicting = (differences.max(axis=1) > 0) & (differences.min(axis=1) < 0)  # a tie takes no side
    logger.info("%d pairs of responses, %d of them conflicting.", len(pairs), is_conflicting.sum())
    rng = np.random.default_rng(seed)
    utilities, drawn, num_ties = [], [], 0
    for user, user_weights in enumerate(weights):
        utility = differences @ user_weights  # (N,)
        num_ties += np.sum(utility == 0)
        drawn.append(_draw_pairs(utility != 0, is_conflicting, pairs_per_user, conflict_rate, rng, user))
        utilities.append(utility[drawn[-1]])
    logger.info("Ties are left out, on average %.1f of these pairs for a user.", num_ties / len(weights))
    users = np.arange(len(weights)).repeat([len(indices) for indices in drawn])
    drawn, first = np.concatenate(drawn), np.concatenate(utilities) > 0
    chosen = np.where(first, pairs[drawn, 0], pairs[drawn, 1])
    rejected = np.where(first, pairs[drawn, 1], pairs[drawn, 0])
    columns = {
        "user_id": users,
        "prompt": _take(prompts, chosen),
        "chosen": _take(responses, chosen),
        "rejected": _take(responses, rejected),
        "weights": list(weights[users]),
        "group": np.array(_name_groups(weights, scores))[users],
        "is_conflicting": is_conflicting[drawn],
    }
    return Dataset(pa.table(columns))


def simulate_splits(
    items: Dataset,
    scores: list[str],
    weights: dict[str, np.ndarray],
    pairs_per_user: dict[str, int | None],
    conflict_rate: float | None = None,
    seed: int = 0,
) -> dict[str, Dataset]:
    """
    Draw the choices of simulated users of training, validation and test, who share neither a prompt nor a `user_id`.

    Args:
        items ([`~datasets.Dataset`]), scores (`list[str]`):
            As in [`simulate_users`]. Prompts are split by [`hash_split`].
        weights (`dict[str, np.ndarray]`):
            For each split the weights of its users, of shape `(U, S)`.
        pairs_per_user (`dict[str, int]`):
            For each split the choices of each user; `None`: as many as there are.
        conflict_rate (`float`, *optional*), seed (`int`, *optional*, defaults to `0`):
            As in [`simulate_users`].

    Returns:
        `dict[str, Dataset]`: `"train"`, `"validation"` and `"test"`, as from [`simulate_users`], but for the `user_id`,
        `"train-0"`, `"train-1"`, ...

    Raises:
        `ValueError`: as in [`simulate_users`], or if a split has no prompt.
    """
    users = {}
    for index, (split, split_items) in enumerate(split_by_hash(items, "prompt").items()):
        logger.info("Drawing the users of %s.", split)
        drawn = simulate_users(
            split_items, scores, weights[split], pairs_per_user[split], conflict_rate, len(weights) * seed + index
        )
        names = pa.array([f"{split}-{user}" for user in drawn["user_id"]])
        users[split] = drawn.remove_columns("user_id").add_column("user_id", names)
    return users


def draw_mixtures(num_users: int, num_scores: int, concentration: float, seed: int = 0) -> np.ndarray:
    """
    Draw weights of users from a symmetric Dirichlet distribution (appendix D.2).

    Args:
        num_users (`int`), num_scores (`int`):
            Number of users, and of scores that they weigh.
        concentration (`float`):
            Parameter of the distribution: 1 is uniform on the simplex, less favours its corners.
        seed (`int`, *optional*, defaults to `0`):
            Seed of everything drawn.

    Returns:
        `np.ndarray` of shape `(num_users, num_scores)`: each row sums to 1.

    Raises:
        `ValueError`: if the concentration is not positive.
    """
    if concentration <= 0:
        raise ValueError(f"`concentration={concentration}` must be positive.")
    # a stream of its own, apart from that of the choices
    return np.random.default_rng((1, seed)).dirichlet([concentration] * num_scores, num_users)


def _pair_responses(prompts: pa.Array, responses: pa.Array) -> np.ndarray:
    """All pairs of different responses to a prompt, as row numbers: `(N, 2)`."""
    keys = np.stack([_encode(prompts), _encode(responses)], axis=1)
    _, rows = np.unique(keys, axis=0, return_index=True)
    _, groups, sizes = np.unique(keys[np.sort(rows), 0], return_inverse=True, return_counts=True)
    order = np.sort(rows)[np.argsort(groups, kind="stable")]  # rows, prompt by prompt
    starts = np.cumsum(sizes) - sizes
    counts = (len(keys) - len(rows), int((sizes == 1).sum()))
    if any(counts):
        logger.info("Left out %d repeated responses, and %d prompts with a single response.", *counts)
    pairs = [np.empty((0, 2), dtype=int)]
    for size in np.unique(sizes):
        within = np.stack(np.triu_indices(size, k=1), axis=1)  # (size * (size - 1) / 2, 2)
        pairs.append(order[starts[sizes == size][:, None, None] + within].reshape(-1, 2))
    return np.concatenate(pairs)


def _draw_pairs(
    candidates, is_conflicting, size: int | None, conflict_rate: float | None, rng, user: int
) -> np.ndarray:
    """Draw pairs of a user in random order, with the share of conflicting ones that is asked for."""
    if conflict_rate is None:
        kinds, shares = {"": np.flatnonzero(candidates)}, [1.0]
    else:
        kinds = {
            "conflicting ": np.flatnonzero(candidates & is_conflicting),
            "agreeing ": np.flatnonzero(candidates & ~is_conflicting),
        }
        shares = [conflict_rate, 1 - conflict_rate]
    if size is None:
        size = _largest_size([len(pairs) for pairs in kinds.values()], shares)
    first = round(shares[0] * size)
    drawn = []
    for (kind, pairs), number in zip(kinds.items(), (first, size - first), strict=False):
        if len(pairs) < number:
            raise ValueError(
                f"User {user} has {len(pairs)} {kind}pairs to choose from, but `pairs_per_user={size}` and "
                f"`conflict_rate={conflict_rate}` ask for {number}. Lower `pairs_per_user` or give more `items`."
            )
        drawn.append(rng.choice(pairs, number, replace=False))
    return rng.permutation(np.concatenate(drawn))


def _largest_size(counts: list[int], shares: list[float]) -> int:
    """How many pairs can be drawn in these shares, at least one: the kind that is short of pairs decides."""
    return max(1, min(int(count / share) for count, share in zip(counts, shares, strict=True) if share > 0))


def _take(texts: pa.Array, indices: np.ndarray) -> pa.ChunkedArray:
    """Repeat texts in parts: one Arrow array holds 2 GiB of text at most."""
    num_parts = -(-len(indices) // 100_000)
    return pa.chunked_array([texts.take(part) for part in np.array_split(indices, num_parts)])


def _read_scores(items: Dataset, scores: list[str], standardize: bool) -> np.ndarray:
    values = np.stack([_read(items, name).to_numpy(zero_copy_only=False) for name in scores], axis=1).astype(float)
    if not np.isfinite(values).all():
        row, column = np.argwhere(~np.isfinite(values))[0]
        raise ValueError(f"`{scores[column]}` of row {row} of `items` is missing or infinite. Drop the row.")
    if not standardize:
        return values
    # one scale for a column, so that equal scores stay equal
    return (values - values.mean(axis=0)) / np.maximum(values.std(axis=0), 1e-12)


def _name_groups(weights: np.ndarray, scores: list[str]) -> list[str]:
    return [scores[np.argmax(row)] if np.count_nonzero(row) == 1 else "mixture" for row in weights]


def _read(items: Dataset, name: str) -> pa.Array:
    return items.select_columns(name).with_format("arrow")[:].column(name).combine_chunks()


def _encode(texts: pa.Array) -> np.ndarray:
    return texts.dictionary_encode().indices.to_numpy()


def _check_arguments(items: Dataset, scores: list[str], weights: np.ndarray, conflict_rate: float | None) -> None:
    missing = [name for name in ("prompt", "response", *scores) if name not in items.column_names]
    if missing:
        raise ValueError(f"`items` has no {missing} column, only {items.column_names}.")
    if weights.ndim != 2 or weights.shape[1] != len(scores):
        raise ValueError(
            f"`weights` has shape {weights.shape}, but there must be one row a user and one column for each of {scores}."
        )
    if conflict_rate is not None and not 0 <= conflict_rate <= 1:
        raise ValueError(f"`conflict_rate={conflict_rate}` must be between 0 and 1, or None.")

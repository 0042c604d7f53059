"""Preference pairs from PRISM (Kirk et al., 2024; `HannahRoseKirk/prism-alignment` on the Hub, configuration `utterances`)."""

import logging
from collections import Counter

from datasets import Dataset


logger = logging.getLogger(__name__)

COLUMNS = (
    "user_id", "conversation_id", "interaction_id", "turn", "conversation_type", "user_prompt", "model_response", "if_chosen",
)  # fmt: skip


def prism_preferences(utterances: Dataset, opening_turns_only: bool = True) -> Dataset:
    """
    Turn PRISM's utterances, one row a model response, into preference pairs of its participants.

    The responses of one interaction answer the same prompt, and the participant continues with one of them: `if_chosen`. It
    is preferred to each of the others, whatever the scores. Others make no pairs among each other. So the pairs of a turn share
    prompt and chosen response: where participants have turns enough, evaluate with `eval_disjoint_prompts`.

    Args:
        utterances ([`~datasets.Dataset`]):
            The configuration `utterances`.
        opening_turns_only (`bool`, *optional*, defaults to `True`):
            Whether only the first turn of a conversation counts, where all responses are of different models and the prompt
            is a string. Otherwise every turn does; `prompt` is then the conversation so far with the chosen responses, and
            `chosen` and `rejected` are one message each, all as lists of messages.

    Returns:
        [`~datasets.Dataset`] with the columns `user_id`, `prompt`, `chosen`, `rejected`, `conversation_id`, `turn` and
        `conversation_type`. Left out, with logged counts: turns without a prompt or without exactly one chosen response,
        and those after one; responses that are empty or that repeat another of their turn.

    Raises:
        `ValueError`: if a column is absent, or no pair is left.
    """
    missing = [name for name in COLUMNS if name not in utterances.column_names]
    if missing:
        raise ValueError(
            f"`utterances` has no {missing} column, only {utterances.column_names}. Load the configuration `utterances`."
        )
    opening = min(utterances["turn"], default=0)
    conversations, counts, pairs = {}, Counter(), []
    for row in utterances.select_columns(list(COLUMNS)):
        if row["turn"] == opening or not opening_turns_only:
            turns = conversations.setdefault(row["conversation_id"], {})
            turns.setdefault((row["turn"], row["interaction_id"]), []).append(row)
    for turns in conversations.values():
        pairs += _compare(dict(sorted(turns.items())), opening, opening_turns_only, counts)
    if +counts:
        logger.warning("Left out %s.", ", ".join(f"{number} {what}" for what, number in sorted((+counts).items())))
    if not pairs:
        raise ValueError(
            f"The {len(utterances)} utterances make no pair: no turn has a chosen response and another one."
        )
    return Dataset.from_list(pairs)


def _compare(turns: dict[tuple, list[dict]], opening: int, as_strings: bool, counts: Counter) -> list[dict]:
    """The pairs of one conversation, turn by turn, up to the first that cannot be gone on from."""
    pairs, history = [], []
    for index, ((turn, _), rows) in enumerate(turns.items()):
        prompt, chosen, rejected = _read_turn(rows, counts)
        if chosen is None or turn != opening + index:
            counts["turns without a prompt or one chosen response, or after such a turn"] += len(turns) - index
            break
        history.append({"role": "user", "content": prompt})
        for text in rejected:
            pair = (prompt, chosen, text) if as_strings else (list(history), _answer(chosen), _answer(text))
            pairs.append(_about(rows[0]) | dict(zip(("prompt", "chosen", "rejected"), pair, strict=True)))
        history += _answer(chosen)
    return pairs


def _read_turn(rows: list[dict], counts: Counter) -> tuple[str, str | None, list[str]]:
    """The prompt, the chosen response (`None` unless there is exactly one), and the different other ones."""
    full = [row for row in rows if (row["model_response"] or "").strip()]
    chosen = {row["model_response"] for row in full if row["if_chosen"]}
    texts = dict.fromkeys(row["model_response"] for row in full)
    counts.update({"empty responses": len(rows) - len(full), "repeated responses": len(full) - len(texts)})
    prompt = rows[0]["user_prompt"] or ""
    if len(chosen) != 1 or not prompt.strip():
        return prompt, None, []
    return prompt, *chosen, [text for text in texts if text not in chosen]


def _answer(text: str) -> list[dict]:
    return [{"role": "assistant", "content": text}]


def _about(row: dict) -> dict:
    return {name: row[name] for name in ("user_id", "conversation_id", "turn", "conversation_type")}

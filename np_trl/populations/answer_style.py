"""
Four binary attributes of an answer in English, read off its text.

- long: more than `MAX_SHORT_WORDS` words;
- list: at least two lines that begin with a number or a bullet;
- warm: an exclamation mark;
- hedged: a word or phrase of `HEDGES`.
"""

import re


ATTRIBUTES = ("long", "list", "warm", "hedged")
OPPOSITES = ("short", "prose", "plain", "sure")
MAX_SHORT_WORDS = 30
# what a user would say who wants an attribute, and who wants its opposite
REQUESTS = (
    ("Answer in more than 30 words.", "Answer in one short sentence of less than 30 words."),
    ("Write a numbered list.", "Write plain sentences, without a list."),
    ("Be warm and use exclamation marks!", "Be matter-of-fact and do not use exclamation marks."),
    (
        'Sound unsure, with words such as "perhaps" or "I think".',
        'Sound sure, without words such as "perhaps" or "I think".',
    ),
)
HEDGES = (
    "perhaps", "maybe", "might", "possibly", "probably", "presumably", "i think", "i believe", "i guess", "i suppose",
    "i would say", "i'd say", "in my opinion", "not sure", "not certain", "it depends", "it seems",
)  # fmt: skip

_ITEM = re.compile(r"^\s*(?:\d{1,2}[.)]|[-*•])\s+\S", re.MULTILINE)
_HEDGE = re.compile(r"\b(?:" + "|".join(HEDGES) + r")\b", re.IGNORECASE)


def detect_attributes(text: str) -> tuple[int, ...]:
    """
    Detect the attributes of a text.

    Args:
        text (`str`):
            An answer.

    Returns:
        `tuple[int, ...]`: for each of `ATTRIBUTES` 1 or -1.
    """
    text = text.replace("’", "'")
    shown = (
        len(text.split()) > MAX_SHORT_WORDS,
        len(_ITEM.findall(text)) >= 2,
        "!" in text,
        _HEDGE.search(text) is not None,
    )
    return tuple(1 if attribute else -1 for attribute in shown)

"""
The language of the style population: short how-to answers with four binary attributes, a writer and a parser.

An answer is `opening steps`; the last step names the verb and the object of the prompt. Every attribute shows:

- long: four steps, otherwise two;
- list: one step a line, otherwise one sentence;
- formal: register of the opening and of every step;
- hedged: whether the adverbs of the opening and of the last step are unsure.

The texts are our own. Nothing is learned here: `write_answer` and `is_grammatical` are each other's inverse.
"""

import re

import numpy as np


ATTRIBUTES = ("long", "list", "formal", "hedged")
OPPOSITES = ("short", "prose", "casual", "sure")
# what a user would say who wants an attribute, and who wants its opposite
REQUESTS = (
    ("Give four steps.", "Give two steps."),
    ("Write a list.", "Write one sentence."),
    ("Be formal.", "Be casual."),
    ("Sound unsure.", "Sound sure."),
)

VERBS = ("clean", "fix", "paint", "move", "store", "test", "sell", "lift", "wrap", "tune")
NOUNS = (
    "bike", "lamp", "desk", "boat", "door", "piano", "tent", "kettle", "clock", "radio",
    "chair", "mirror", "fence", "engine", "camera", "ladder", "shelf", "drum", "stove", "kite",
)  # fmt: skip

# hedged -> adverbs of the opening and of the last step
ADVERBS = {True: ("perhaps", "possibly"), False: ("certainly", "definitely")}
# formal -> rest of the opening
OPENINGS = {
    True: ("the following is advised", "one may proceed thus"),
    False: ("here's the trick", "just do this stuff"),
}
# formal -> steps in any order
STEPS = {
    True: (
        "obtain suitable tools",
        "consult the manual",
        "request assistance",
        "prepare the area",
        "proceed with care",
    ),
    False: ("grab some tools", "peek at the guide", "ask a buddy", "clear some space", "take it slow"),
}
# formal -> end of the last step
MANNERS = {True: "thoroughly", False: "real good"}

_PROMPT = re.compile(r"How do I (\w+) the (\w+)\?")


def write_prompt(verb: str, noun: str) -> str:
    """Return the prompt that asks how to `verb` the `noun`."""
    return f"How do I {verb} the {noun}?"


def all_prompts() -> list[str]:
    """Return every prompt of the language, in a fixed order."""
    return [write_prompt(verb, noun) for verb in VERBS for noun in NOUNS]


def write_answer(prompt: str, attributes: tuple[int, ...], rng: np.random.Generator) -> str:
    """
    Write one answer to `prompt`.

    Args:
        prompt (`str`):
            A prompt of [`all_prompts`].
        attributes (`tuple[int, ...]`):
            One sign (+1 or -1) for each of `ATTRIBUTES`.
        rng (`np.random.Generator`):
            Chooses among the openings and the steps.

    Returns:
        `str`: the answer, with a leading space, so that it can follow the prompt.
    """
    long, as_list, formal, hedged = (sign > 0 for sign in attributes)
    verb, noun = _PROMPT.fullmatch(prompt).groups()
    adverbs, steps = rng.choice(ADVERBS[hedged], size=2), list(rng.permutation(STEPS[formal])[: 3 if long else 1])
    steps.append(f"{adverbs[1]} {verb} the {noun} {MANNERS[formal]}")
    opening = f"{adverbs[0].capitalize()}, {rng.choice(OPENINGS[formal])}:"
    if as_list:
        return f" {opening}" + "".join(f"\n- {step}" for step in steps)
    return f" {opening} {', then '.join(steps)}."


def detect_attributes(answer: str) -> tuple[int, ...]:
    """
    Read the attributes off any text, grammatical or not.

    Returns:
        `tuple[int, ...]`: +1 or -1 for each of `ATTRIBUTES`, or 0 where the text does not show it.
    """
    body = answer.partition(":")[2]
    num_steps = len(_split_steps(body))
    formal, casual = (
        sum(phrase in answer for phrase in (*OPENINGS[formal], *STEPS[formal], MANNERS[formal]))
        for formal in (True, False)
    )
    hedged, sure = (sum(answer.lower().count(adverb) for adverb in ADVERBS[hedged]) for hedged in (True, False))
    return (
        0 if num_steps == 0 else (1 if num_steps > 2 else -1),
        0 if num_steps == 0 else (1 if body.startswith("\n- ") else -1),
        int(np.sign(formal - casual)),
        int(np.sign(hedged - sure)),
    )


def is_grammatical(prompt: str, answer: str) -> bool:
    """Whether `answer` is a text that `write_answer` could have written for `prompt`."""
    verb, noun = _PROMPT.fullmatch(prompt).groups()
    attributes = detect_attributes(answer)
    if 0 in attributes:
        return False
    _, as_list, formal, hedged = (sign > 0 for sign in attributes)
    opening, _, body = answer.strip().partition(":")
    steps = _split_steps(body)
    rebuilt = "".join(f"\n- {step}" for step in steps) if as_list else f" {', then '.join(steps)}."
    openings = {f"{adverb.capitalize()}, {rest}" for adverb in ADVERBS[hedged] for rest in OPENINGS[formal]}
    last_steps = {f"{adverb} {verb} the {noun} {MANNERS[formal]}" for adverb in ADVERBS[hedged]}
    return (
        opening in openings
        and body == rebuilt
        and len(steps) in (2, 4)
        and len(set(steps)) == len(steps)
        and set(steps[:-1]) <= set(STEPS[formal])
        and steps[-1] in last_steps
    )


def share_grammatical(prompts: list[str], answers: list[str]) -> float:
    """The share of answers that are in the language."""
    return float(np.mean([is_grammatical(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]))


def _split_steps(body: str) -> list[str]:
    """Split what follows the opening into steps."""
    steps = body[3:].split("\n- ") if body.startswith("\n- ") else body.strip().removesuffix(".").split(", then ")
    return [step for step in steps if step]

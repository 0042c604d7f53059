"""
The language of the style population: short how-to answers with four binary attributes, a writer and a parser.

An answer is `opening steps`; the last step names the verb and the object of the prompt. Every attribute shows:

- long: four steps, otherwise two;
- list: one step a line, otherwise one sentence;
- formal: register of the opening and of every step;
- hedged: whether the opening is unsure.

The texts are our own. Nothing is learned here: `write_answer` and `is_grammatical` are each other's inverse.
"""

import re

import numpy as np


ATTRIBUTES = ("long", "list", "formal", "hedged")

VERBS = ("clean", "fix", "paint", "move", "store", "test", "sell", "lift", "wrap", "tune")
NOUNS = (
    "bike", "lamp", "desk", "boat", "door", "piano", "tent", "kettle", "clock", "radio",
    "chair", "mirror", "fence", "engine", "camera", "ladder", "shelf", "drum", "stove", "kite",
)  # fmt: skip

# (formal, hedged) -> openings
OPENINGS = {
    (True, True): ("This may perhaps be of use:", "One might possibly consider this:"),
    (True, False): ("This will undoubtedly succeed:", "One should certainly do this:"),
    (False, True): ("Hmm, maybe try this:", "Dunno, this could work:"),
    (False, False): ("Yep, just do this:", "Easy, this totally works:"),
}
# formal -> steps in any order
STEPS = {
    True: ("obtain suitable tools", "consult the manual", "request assistance", "prepare the area", "proceed with care"),
    False: ("grab some tools", "peek at the guide", "ask a buddy", "clear some space", "take it slow"),
}
# formal -> the last step
LAST_STEPS = {True: "{verb} the {noun} thoroughly", False: "{verb} the {noun} real good"}

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
    opening = rng.choice(OPENINGS[formal, hedged])
    steps = list(rng.permutation(STEPS[formal])[: 3 if long else 1])
    steps.append(LAST_STEPS[formal].format(verb=verb, noun=noun))
    if as_list:
        return f" {opening}" + "".join(f"\n- {step}" for step in steps)
    return f" {opening} {', then '.join(steps)}."


def detect_attributes(answer: str) -> tuple[int, ...]:
    """
    Read the attributes off any text, grammatical or not.

    Returns:
        `tuple[int, ...]`: +1 or -1 for each of `ATTRIBUTES`, or 0 where the text does not show it.
    """
    opening, colon, body = answer.strip().partition(":")
    num_steps = len(_split_steps(body))
    formal_words = sum(phrase in answer for phrase in (*STEPS[True], "thoroughly"))
    casual_words = sum(phrase in answer for phrase in (*STEPS[False], "real good"))
    hedged = [hedge for (_, hedge), openings in OPENINGS.items() if opening + colon in openings]
    return (
        0 if num_steps == 0 else (1 if num_steps > 2 else -1),
        0 if num_steps == 0 else (1 if body.startswith("\n- ") else -1),
        int(np.sign(formal_words - casual_words)),
        0 if not hedged else (1 if hedged[0] else -1),
    )


def is_grammatical(prompt: str, answer: str) -> bool:
    """Whether `answer` is a text that `write_answer` could have written for `prompt`."""
    verb, noun = _PROMPT.fullmatch(prompt).groups()
    opening, colon, body = answer.strip().partition(":")
    registers = [formal for (formal, _), openings in OPENINGS.items() if opening + colon in openings]
    steps = _split_steps(body)
    if not registers or len(steps) not in (2, 4):
        return False
    formal, as_list = registers[0], body.startswith("\n- ")
    rebuilt = "".join(f"\n- {step}" for step in steps) if as_list else f" {', then '.join(steps)}."
    return (
        body == rebuilt
        and steps[-1] == LAST_STEPS[formal].format(verb=verb, noun=noun)
        and len(set(steps)) == len(steps)
        and set(steps[:-1]) <= set(STEPS[formal])
    )


def _split_steps(body: str) -> list[str]:
    """Split what follows the opening into steps."""
    steps = body[3:].split("\n- ") if body.startswith("\n- ") else body.strip().removesuffix(".").split(", then ")
    return [step for step in steps if step]

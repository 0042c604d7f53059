"""
Let a language model answer everyday prompts in several styles: the answers among which simulated users choose.

Each prompt is answered several times. The style of an answer, a value for each attribute of
`np_trl/populations/answer_style.py`, is asked for by a sentence after the prompt, by the words with which the answer begins
(which are part of it), and by its largest length; neither the sentence nor the style is kept. An answer ends with its last
whole sentence or item of a list. Repeated and broken answers are dropped.

```sh
python examples/datasets/write_answers.py \
    --model_name_or_path HuggingFaceTB/SmolLM2-135M-Instruct \
    --output_file answers.parquet
```

Two CPU cores take about 40 minutes, in two processes with half of the `--kinds` each. `np_trl/populations/everyday.py` reads
the answers that come with the package.
"""

import itertools
import re
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser, set_seed

from np_trl.files import whole_file
from np_trl.populations.answer_style import ATTRIBUTES


PROMPTS = Path(__file__).parent / "everyday_prompts"
KINDS = tuple(sorted(path.stem for path in PROMPTS.glob("*.txt")))
STYLES = tuple(itertools.product((False, True), repeat=len(ATTRIBUTES)))
TEMPERATURES = (0.5, 0.7, 0.9)
MAX_NEW_TOKENS = {False: 40, True: 84}  # of short and long answers, besides the words that they begin with

GREETINGS = ("Great question!", "Sure!", "Happy to help!", "Of course!", "I'm glad you asked!", "Good question!")
SYMPATHIES = (
    "Thanks for telling me!",
    "I hear you!",
    "Oh, I see!",
    "Good to hear from you!",
    "Thank you for sharing!",
)
HEDGED_OPENINGS = (
    "I think",
    "Perhaps",
    "Maybe",
    "I'm not sure, but",
    "In my opinion,",
    "It depends, but",
    "I would say",
)
LIST_OPENINGS = {
    False: ("Here is a short list:", "Here are some points:", "In short:", "Some ideas:", ""),
    True: ("I'm not sure, but maybe:", "Perhaps some of these:", "These might help:", "I think of these:"),
}


@dataclass
class Arguments:
    model_name_or_path: str = field(
        default="HuggingFaceTB/SmolLM2-135M-Instruct", metadata={"help": "Folder or name on the Hub of a chat model."}
    )
    output_file: str = field(default="answers.parquet", metadata={"help": "Parquet file to write."})
    kinds: list[str] = field(
        default_factory=lambda: list(KINDS), metadata={"help": f"Prompts to answer: {', '.join(KINDS)}."}
    )
    answers_per_prompt: int = field(default=8, metadata={"help": "Answers to each prompt, in different styles."})
    batch_size: int = field(default=64, metadata={"help": "Answers that are written at once."})
    seed: int = field(default=0, metadata={"help": "Seed of styles and samples."})

    def __post_init__(self):
        unknown = sorted(set(self.kinds) - set(KINDS))
        if unknown:
            raise ValueError(f"`kinds` {unknown} are unknown. Choose among {list(KINDS)}.")
        if not 1 <= self.answers_per_prompt <= len(STYLES):
            raise ValueError(
                f"`answers_per_prompt={self.answers_per_prompt}` must be between 1 and {len(STYLES)}, the number of styles."
            )


def read_prompts(kind: str) -> list[str]:
    """The prompts of a kind, one a line."""
    return PROMPTS.joinpath(f"{kind}.txt").read_text(encoding="utf-8").splitlines()


def draw_requests(arguments: Arguments) -> list[dict]:
    """Draw style, temperature and first words of every answer to every prompt."""
    requests = []
    for kind in arguments.kinds:
        rng = np.random.default_rng([arguments.seed, KINDS.index(kind)])
        for prompt in read_prompts(kind):
            for index in rng.permutation(len(STYLES))[: arguments.answers_per_prompt]:
                is_long, is_list, is_warm, is_hedged = STYLES[index]
                begin = []
                if is_warm:
                    begin.append(rng.choice(SYMPATHIES if kind == "small_talk" else GREETINGS))
                if is_list:
                    begin.append(f"{rng.choice(LIST_OPENINGS[is_hedged])}\n\n1.".lstrip())
                elif is_hedged:
                    begin.append(rng.choice(HEDGED_OPENINGS))
                requests.append(
                    {
                        "kind": kind,
                        "prompt": prompt,
                        "request": _ask(prompt, is_long, is_list, is_warm),
                        "begin": " ".join(map(str, begin)),
                        "is_long": is_long,
                        "temperature": float(rng.choice(TEMPERATURES)),
                    }
                )
    return requests


def _ask(prompt: str, is_long: bool, is_list: bool, is_warm: bool) -> str:
    tone = " in a warm and cheerful tone" if is_warm else ""
    if is_list:
        return f"{prompt} Answer{tone} with a list of {'four' if is_long else 'two short'} points."
    if not is_long:
        return f"{prompt} Answer{tone} in one short sentence."
    return f"{prompt} Answer{tone}." if is_warm else prompt


@torch.inference_mode()
def write(model, tokenizer, requests: list[dict], max_new_tokens: int, temperature: float) -> list[str]:
    """Sample an answer to each request, its first words included."""
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": row["request"]}], add_generation_prompt=True, tokenize=False
        )
        + row["begin"]
        for row in requests
    ]
    inputs = tokenizer(texts, padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt")
    outputs = model.generate(
        **inputs, do_sample=True, temperature=temperature, top_k=50, max_new_tokens=max_new_tokens
    )
    written = tokenizer.batch_decode(outputs[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [row["begin"] + text for row, text in zip(requests, written, strict=True)]


def end_whole(text: str) -> str:
    """Cut a text behind its last whole sentence, or before the item of a list that is not finished."""
    text = re.sub(r"[ \t]+", " ", text.replace("’", "'")).strip()
    ends = [match.end() for match in re.finditer(r"(?<!\d)[.!?][\"')]?(?=\s|$)", text)]
    ends += [match.start() for match in re.finditer(r"\n+(?=\d+\.\s|[-*] )", text) if match.start() > 0]
    whole = text[: max(ends, default=0)].strip()
    return re.sub(r"(?:\s*\n)*\s*(?:\d+\.|[-*])$", "", whole)  # the number of an item that has not begun


def is_broken(prompt: str, answer: str) -> str | None:
    """Say what is wrong with an answer that nobody should choose; `None` if nothing is."""
    words = re.findall(r"[a-z']+", answer.lower())
    if len(words) < 6:
        return "too short"
    if not answer.isascii() or re.search(r"[\[\]{}<>|_\\#@]|http|\d{4}-", answer):
        return "markup"
    if re.search(r"\S +2[.)] ", answer):
        return "list in one line"
    if len(re.findall(r"^ *\d+[.)] ", answer, re.MULTILINE)) == 1 or re.search(r"\b1\. 1\.", answer):
        return "list of one item"
    if re.search(r"cheerful|short sentence|simple answer|(?:two|four)(?: short)? points", answer.lower()):
        return "speaks of the style asked for"
    if sum(character.isdigit() for character in answer) > 0.08 * len(answer):
        return "digits"
    trigrams = list(zip(words, words[1:], words[2:], strict=False))
    if len(set(trigrams)) < 0.85 * len(trigrams):
        return "repeats itself"
    if _content(prompt) and not _content(prompt) & _content(answer):
        return "no word of the prompt"
    return None


def _content(text: str) -> set[str]:
    """Beginnings of the longer words of a text, without those that any text may have."""
    return {word[:4] for word in re.findall(r"[a-z]{4,}", text.lower())} - {
        "what", "that", "this", "with", "have", "from", "your", "they", "them", "when", "where", "which", "there", "some",
        "would", "coul", "shou", "woul", "does", "than", "then", "just", "more", "most", "like", "real", "very", "thin",
        "whic", "ther", "thes", "thos", "wher", "abou", "good", "been", "will", "make", "into", "for", "only",
    }  # fmt: skip


def keep_whole(rows: list[dict]) -> tuple[list[dict], Counter]:
    """Drop broken answers and those that repeat another of their prompt; count what was dropped."""
    kept, seen, dropped = [], set(), Counter()
    for row in rows:
        what = is_broken(row["prompt"], row["response"])
        if what is None and (row["prompt"], row["response"]) in seen:
            what = "repeats another"
        if what is None:
            seen.add((row["prompt"], row["response"]))
            kept.append(row)
        else:
            dropped[what] += 1
    return kept, dropped


def main(arguments: Arguments) -> None:
    tokenizer = AutoTokenizer.from_pretrained(arguments.model_name_or_path)
    # float32: CPUs without bfloat16 arithmetic decode several times slower in it
    model = AutoModelForCausalLM.from_pretrained(arguments.model_name_or_path, dtype=torch.float32).eval()
    requests, rows = draw_requests(arguments), []
    set_seed(arguments.seed)
    groups = {}
    for row in requests:
        groups.setdefault((row["is_long"], row["temperature"]), []).append(row)
    for (is_long, temperature), group in groups.items():
        for start in range(0, len(group), arguments.batch_size):
            batch = group[start : start + arguments.batch_size]
            for row, text in zip(
                batch, write(model, tokenizer, batch, MAX_NEW_TOKENS[is_long], temperature), strict=True
            ):
                rows.append({key: row[key] for key in ("kind", "prompt")} | {"response": end_whole(text)})
            print(f"{len(rows)} of {len(requests)} answers", file=sys.stderr, flush=True)
    rows.sort(key=lambda row: (row["kind"], row["prompt"]))
    kept, dropped = keep_whole(rows)
    print(f"Dropped: {', '.join(f'{number} {what}' for what, number in dropped.items()) or 'none'}.", file=sys.stderr)
    with whole_file(arguments.output_file) as part:
        pq.write_table(pa.Table.from_pylist(kept), part, compression="zstd")
    print(f"{len(kept)} answers: {arguments.output_file}")


if __name__ == "__main__":
    main(*HfArgumentParser(Arguments).parse_args_into_dataclasses())

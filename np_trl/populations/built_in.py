"""The populations that come with the package, by the name that `--dataset_name` takes."""

from collections.abc import Callable
from dataclasses import dataclass, field

from datasets import Dataset

from np_trl.populations.attributes import Attributes
from np_trl.populations.everyday import EVERYDAY, everyday_population
from np_trl.populations.style import STYLE, split_prompts, style_bayes_accuracy, style_population
from np_trl.populations.style_grammar import share_grammatical


@dataclass(frozen=True)
class Population:
    """
    A simulated population.

    Args:
        draw (`Callable`):
            Draws training and evaluation users, of other prompts: `(num_train_users, num_eval_users, seed)`.
        attributes ([`Attributes`]):
            What users want of a text.
        readers (`dict[tuple, str]`):
            Two opposite types of users, and how they chose.
        prompts (`list`):
            Prompts that training has not seen, to show what is written for these.
        limit (`Callable`, *optional*):
            The accuracy that can be reached after each number of choices.
        quality (`dict[str, Callable]`, *optional*):
            Measures of texts to prompts, which no user wants in particular.
        max_new_tokens (`int`, *optional*, defaults to `64`):
            Largest number of tokens of a text.
    """

    draw: Callable[[int, int, int], tuple[Dataset, Dataset]]
    attributes: Attributes
    readers: dict[tuple[int, ...], str]
    prompts: list
    limit: Callable[[list[int]], dict[int, float]] = lambda num_contexts: {}
    quality: dict[str, Callable[[list, list[str]], float]] = field(default_factory=dict)
    max_new_tokens: int = 64


def _draw_style(num_train_users: int, num_eval_users: int, seed: int) -> tuple[Dataset, Dataset]:
    train_prompts, eval_prompts = split_prompts()
    return (
        style_population(train_prompts, num_train_users, pairs_per_user=20, seed=2 * seed),
        style_population(eval_prompts, num_eval_users, pairs_per_user=22, seed=2 * seed + 1),
    )


def _draw_everyday(num_train_users: int, num_eval_users: int, seed: int) -> tuple[Dataset, Dataset]:
    return (
        everyday_population("train", num_train_users, pairs_per_user=16, seed=2 * seed),
        everyday_population("test", num_eval_users, pairs_per_user=22, seed=2 * seed + 1),
    )


POPULATIONS = {
    "style_population": Population(
        draw=_draw_style,
        attributes=STYLE,
        readers={(1, 1, 1, -1): "long, formal, sure lists", (-1, -1, -1, 1): "short, casual, hedged prose"},
        prompts=split_prompts()[1][:2],
        limit=style_bayes_accuracy,
        quality={"grammatical": share_grammatical},
    ),
    "everyday_answers": Population(
        draw=_draw_everyday,
        attributes=EVERYDAY,
        readers={(1, 1, -1, -1): "long, plain, sure lists", (-1, -1, 1, 1): "short, warm, hedged prose"},
        prompts=[
            [{"role": "user", "content": "How do I keep cut flowers fresh for longer?"}],
            [{"role": "user", "content": "What could I do on a rainy Sunday?"}],
        ],
        max_new_tokens=96,
    ),
}

"""Selection of the questions to ask a user next, by their expected information gain (section 7 of the paper)."""

import logging
from dataclasses import dataclass, field

import torch

from np_trl.data.ranges import check_at_least
from np_trl.users.posterior import sample_latents
from np_trl.users.questions import QuestionPool, as_pool


logger = logging.getLogger(__name__)

# largest number of joint answers of a batch that are enumerated; of more, as many are drawn
MAX_OUTCOMES = 1024
# nats below which an answer tells nothing: the log-odds of the possible users then have a standard deviation of 0.003 at most.
# Users who agree but for the rounding of float32 lead to less than 1e-10; that of bfloat16 may look like a gain
NO_GAIN = 1e-6


@dataclass(frozen=True)
class Question:
    """
    A pair of options that a user may be asked.

    Args:
        number (`int`):
            Its position in the pool.
        pair (`dict`):
            The pair.
        gain (`float`):
            Expected information gain (Lindley, 1956) of its answer, in nats, given the answers to the questions that were
            selected before it: from 0, where all possible users would answer alike, to log 2.
    """

    number: int
    pair: dict = field(compare=False)
    gain: float


@torch.no_grad()
def select_pairs(
    pool: QuestionPool | list[dict],
    user,
    n: int = 1,
    num_samples: int = 64,
    num_imagined: int = 4,
    seed: int = 0,
) -> list[Question]:
    """
    Select the questions whose answers are expected to be most informative about a user.

    What an answer tells is the mutual information of answer and latent (Houlsby et al., 2011): large where users who agree
    with all choices so far would answer differently, each of them surely. Of several questions it is that of all answers
    together (Kirsch et al., 2019), so that a batch does not ask the same thing twice. A warning says when nothing is left to
    gain: the answers to some of the questions tell less than 1e-6 nats.

    Args:
        pool ([`QuestionPool`] or `list[dict]`):
            Pairs of options. Which is called `chosen` does not matter. A [`QuestionPool`] is read once for many calls.
        user ([`UserProfile`]):
            The user. Pairs that the profile holds, either way round, are not asked again.
        n (`int`, *optional*, defaults to `1`):
            Number of questions, to be asked at once.
        num_samples (`int`, *optional*, defaults to `64`), num_imagined (`int`, *optional*, defaults to `4`), seed (`int`,
            *optional*, defaults to `0`):
            Those of [`sample_latents`], which draws the latents that are still possible. A policy of P open pairs reads
            about `2 * num_samples * (P + num_imagined)` sequences: lower `num_samples` or the pool for a large one.

    Returns:
        `list[Question]`: the questions with their gains, the most telling first.

    Raises:
        `ValueError`: if there are fewer than `n` pairs that the user was not asked, or a number is too small.

    Example:
    ```python
    >>> (question,) = select_pairs(pool, ada)
    >>> question.pair["prompt"], question.gain
    ('How do I fix the bike?', 0.31)
    >>> ada.add(question.pair)  # or the other way round, as the user answers
    ```
    """
    pool = as_pool(pool, user)
    unanswered = pool.unanswered(user)
    if not 1 <= n <= len(unanswered):
        raise ValueError(
            f"`n={n}`, but {len(unanswered)} of the {len(pool)} pairs of the pool are open to this user. Choose `n` between "
            "1 and that, or pass a larger pool."
        )
    check_at_least(2, num_samples=num_samples)
    latents = sample_latents(user, num_samples, pool, num_imagined, seed)  # (S, Z)
    probs = pool.cross_logits(latents, torch.tensor(unanswered)).cpu().double().sigmoid()  # (S, P)
    selected = most_telling(probs, n, torch.Generator().manual_seed(seed))
    questions = [Question(unanswered[place], pool[unanswered[place]], gain) for place, gain in selected]
    _warn_of_no_gain(questions)
    return questions


def _warn_of_no_gain(questions: list[Question]) -> None:
    idle = [question for question in questions if question.gain < NO_GAIN]
    if idle:
        logger.warning(
            "Nothing is left to gain from %d of %d questions selected, those with the numbers %s: their answers tell less than "
            "%g nats (%.1e at most). All users who agree with the choices so far, and with the answers to the other questions, "
            "would answer alike. Ask other questions, or none.",
            len(idle), len(questions), [question.number for question in idle], NO_GAIN, max(q.gain for q in idle),
        )  # fmt: skip


def most_telling(probs: torch.Tensor, n: int, generator: torch.Generator | None = None) -> list[tuple[int, float]]:
    """
    Select questions greedily by the mutual information of all their answers with the user.

    Args:
        probs (`torch.Tensor` of shape `(S, P)`):
            Probability of one of the two answers to P questions, for S users that are equally possible.
        n (`int`):
            Number of questions.
        generator (`torch.Generator`, *optional*):
            Draws joint answers where there are too many to enumerate.

    Returns:
        `list[tuple[int, float]]`: numbers of the questions, the most telling first, and in nats what each answer is expected
        to tell beyond those before it.
    """
    noise = torch.special.entr(probs) + torch.special.entr(1 - probs)  # (S, P): what each user leaves open
    outcomes = probs.new_ones(1, len(probs))  # (K, S): probabilities of the joint answers so far
    counts = probs.new_ones(1, 1)  # (K, 1): how many joint answers each stands for
    selected = []
    for _ in range(n):
        gains = (counts * _gains(outcomes, probs, noise)).sum(dim=0)  # (P,)
        gains[[number for number, _ in selected]] = -torch.inf
        number = int(gains.argmax())
        selected.append((number, float(gains[number])))
        answer = probs[:, number]
        outcomes, counts = torch.cat([outcomes * answer, outcomes * (1 - answer)]), counts.repeat(2, 1)
        if len(outcomes) > MAX_OUTCOMES:
            outcomes, counts = _draw_outcomes(outcomes, counts, generator)
    return selected


def _gains(outcomes: torch.Tensor, probs: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """
    What one more answer tells after each of the joint answers, times the probability of that: `(K, P)`.

    None is negative but for rounding: of users weighted by the joint answers, it is the entropy of the answer beyond what each
    of them leaves open.
    """
    yes = outcomes @ probs / len(probs)  # (K, P): joint with one more answer
    joint = outcomes.mean(dim=1, keepdim=True)  # (K, 1)
    entropy = torch.special.entr(yes) + torch.special.entr((joint - yes).clamp_min(0)) - torch.special.entr(joint)
    return entropy - outcomes @ noise / len(probs)


def _draw_outcomes(
    outcomes: torch.Tensor, counts: torch.Tensor, generator: torch.Generator | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw the largest number of joint answers, by their probabilities, and how many each stands for."""
    weights = (counts * outcomes.mean(dim=1, keepdim=True)).squeeze(1)
    drawn = weights.multinomial(MAX_OUTCOMES, replacement=True, generator=generator)
    return outcomes[drawn], counts[drawn] / (MAX_OUTCOMES * weights[drawn].unsqueeze(1))

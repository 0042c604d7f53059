"""Which questions to ask a user next: those whose answers are expected to tell most (section 7 of the paper)."""

import torch

from np_trl.users.posterior import check_at_least, sample_latents
from np_trl.users.questions import QuestionPool, as_pool


# so many joint answers of a batch are told apart; of more, as many are drawn
MAX_OUTCOMES = 1024


@torch.no_grad()
def select_pairs(
    pool: QuestionPool | list[dict],
    user,
    n: int = 1,
    num_samples: int = 64,
    num_imagined: int = 4,
    seed: int = 0,
) -> list[int]:
    """
    Select the questions whose answers are expected to tell most about a user.

    What an answer tells is the mutual information of answer and latent (Houlsby et al., 2011): large where users who agree
    with all choices so far would answer differently, each of them surely. Of several questions it is that of all answers
    together (Kirsch et al., 2019), so that a batch does not ask the same thing twice.

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
        `list[int]`: positions in the pool, the most telling first.

    Raises:
        `ValueError`: if there are fewer than `n` pairs that the user was not asked, or a number is too small.

    Example:
    ```python
    >>> (number,) = select_pairs(pool, ada)
    >>> pool[number]["prompt"]
    'How do I fix the bike?'
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
    return [unanswered[number] for number in selected]


def most_telling(probs: torch.Tensor, n: int, generator: torch.Generator | None = None) -> list[int]:
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
        `list[int]`: numbers of the questions, the most telling first.
    """
    noise = (torch.special.entr(probs) + torch.special.entr(1 - probs)).mean(dim=0)  # (P,): what the user leaves open
    outcomes = probs.new_ones(1, len(probs))  # (K, S): probabilities of the joint answers so far
    counts = probs.new_ones(1, 1)  # (K, 1): how many joint answers each stands for
    selected = []
    for _ in range(n):
        yes = outcomes @ probs / len(probs)  # (K, P): joint with one more answer
        no = outcomes.mean(dim=1, keepdim=True) - yes
        gain = (counts * (torch.special.entr(yes) + torch.special.entr(no.clamp_min(0)))).sum(dim=0) - noise
        gain[selected] = -torch.inf
        selected.append(int(gain.argmax()))
        answer = probs[:, selected[-1]]
        outcomes, counts = torch.cat([outcomes * answer, outcomes * (1 - answer)]), counts.repeat(2, 1)
        if len(outcomes) > MAX_OUTCOMES:
            weights = (counts * outcomes.mean(dim=1, keepdim=True)).squeeze(1)
            drawn = weights.multinomial(MAX_OUTCOMES, replacement=True, generator=generator)
            outcomes, counts = outcomes[drawn], (counts[drawn] / (MAX_OUTCOMES * weights[drawn].unsqueeze(1)))
    return selected

"""The users of a data set as a policy sees them: where each of them stands, and what a visitor may be asked."""

import base64
import io
from functools import partial

import matplotlib
import numpy as np
import torch
from datasets import Dataset
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from sklearn.decomposition import PCA

from np_trl.data import PreferenceRows
from np_trl.data.ranges import check_at_least
from np_trl.models.texts import SIDES
from np_trl.users import QuestionPool, UserProfile
from np_trl.users.choices import reverse


YOU, OPPOSITE, NOBODY = "#c2410c", "#1d4ed8", "#4b5563"
GRAY = 14  # of the colour map tab20


class Population:
    """
    Users who are known by their choices, the plane of the first two principal components of their latents, and questions
    drawn from their pairs.

    Args:
        policy ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]), tokenizer
            ([`~transformers.PreTrainedTokenizerBase`]):
            A policy.
        dataset ([`~datasets.Dataset`]):
            Preference pairs of at least three users, as texts, with embeddings where the policy reads columns.
        num_choices (`int`):
            Number of choices that each user is known by, or all there are: as many as a visitor makes, because a latent
            moves from nobody's as choices come in.
        num_users (`int`):
            Largest number of users, at least three; the first ones of the data set.
        pool_size (`int`):
            Largest number of questions.
        group_column (`str`):
            Column that says what kind of user each is. Without such a column users are of no kind.
        seed (`int`):
            Seed of the draw of questions.

    Attributes:
        pool ([`QuestionPool`]):
            Questions. Which option is called `chosen` is drawn, so that it tells nothing.
        latents (`torch.Tensor` of shape `(U, Z)`):
            Latents of the users.
        groups (`list[str]`, *optional*):
            What kind each of them is.

    Raises:
        `ValueError`: if there are fewer than three users, or no choices or questions.
    """

    def __init__(
        self,
        policy,
        tokenizer,
        dataset: Dataset,
        num_choices: int,
        num_users: int,
        pool_size: int,
        group_column: str,
        seed: int,
    ):
        check_at_least(3, num_users=num_users)
        check_at_least(1, num_choices=num_choices, pool_size=pool_size)
        needed = ("user_id", "prompt", *SIDES)
        if not set(needed) <= set(dataset.column_names):
            raise ValueError(
                f"The data set has the columns {dataset.column_names}, but a page shows texts of users: it needs {list(needed)}."
            )
        rows = PreferenceRows(dataset)
        if len(rows) < 3:
            raise ValueError(f"The data set has {len(rows)} users, but a plane takes 3. Give the pairs of more users.")
        users = range(min(num_users, len(rows)))
        choices = [dataset.select(rows.of_user(user)[:num_choices]).to_list() for user in users]
        self.latents = torch.cat([UserProfile(policy, tokenizer, pairs).latents for pairs in choices])  # (U, Z)
        self.groups = rows.groups(group_column)[: len(users)] if group_column in dataset.column_names else None
        kinds = np.unique(self.groups, return_inverse=True)[1] if self.groups else np.full(len(users), GRAY)
        self._colors = kinds % 20
        self.pca = PCA(2).fit(self.latents.cpu().numpy())
        pairs = _draw_questions(dataset, pool_size, np.random.default_rng(seed))
        self.pool = QuestionPool(pairs, policy, tokenizer)

    def __len__(self) -> int:
        """Number of users U."""
        return len(self.latents)

    def project(self, latents: torch.Tensor) -> np.ndarray:
        """Project latents `(N, Z)` to the plane: `(N, 2)`."""
        return self.pca.transform(latents.cpu().numpy())

    def nearest_group(self, latents: torch.Tensor) -> str | None:
        """Return the kind of the user who is nearest to a latent `(1, Z)`; `None` where users are of no kind."""
        return None if self.groups is None else self.groups[int(torch.cdist(latents, self.latents).argmin())]

    def draw(self, trail: torch.Tensor, samples: torch.Tensor, opposite: torch.Tensor) -> str:
        """
        Draw where a visitor stands.

        Args:
            trail (`torch.Tensor` of shape `(N, Z)`):
                The visitor's latents from nobody's on, after each choice.
            samples (`torch.Tensor` of shape `(S, Z)`):
                Latents that the choices leave open.
            opposite (`torch.Tensor` of shape `(1, Z)`):
                The latent of the opposite user.

        Returns:
            `str`: an SVG image as a data URL, so that the page fetches nothing.
        """
        # a figure that pyplot does not know: visitors come in threads
        figure = Figure(figsize=(5, 4.2), layout="constrained")
        ax = figure.subplots()
        people, trail, samples, opposite = map(self.project, (self.latents, trail, samples, opposite))
        ax.scatter(*people.T, s=16, lw=0, alpha=0.6, c=self._colors, cmap="tab20", vmin=0, vmax=19)
        ax.add_patch(_two_deviations(samples, trail[-1]))
        ax.plot(*trail.T, color=YOU, lw=1.5)
        mark = partial(ax.scatter, edgecolor="white", zorder=3)
        mark(*trail[:1].T, s=140, marker="s", color=NOBODY, label="nobody")
        mark(*opposite.T, s=110, marker="v", color=OPPOSITE, label="your opposite")
        mark(*trail[-1:].T, s=90, marker="o", color=YOU, label="you")
        shares = self.pca.explained_variance_ratio_
        labels = [f"{name} component ({share:.0%})" for name, share in zip(("first", "second"), shares, strict=True)]
        ax.set(xticks=[], yticks=[], xlabel=labels[0], ylabel=labels[1])
        ax.spines[:].set_color("lightgray")
        figure.legend(loc="outside upper center", ncols=4, frameon=False, handletextpad=0.2, columnspacing=1)
        return _to_data_url(figure)


def _draw_questions(dataset: Dataset, size: int, rng: np.random.Generator) -> list[dict]:
    """Draw distinct pairs, either way round."""
    drawn = {}
    for number in rng.permutation(len(dataset)):
        pair = dataset[int(number)]
        drawn.setdefault((str(pair["prompt"]), *sorted((str(pair["chosen"]), str(pair["rejected"])))), pair)
        if len(drawn) == size:
            break
    return [reverse(pair) if rng.random() < 0.5 else pair for pair in drawn.values()]


def _two_deviations(points: np.ndarray, center: np.ndarray) -> Ellipse:
    """The ellipse of two standard deviations of points `(S, 2)` around a center `(2,)`."""
    variances, axes = np.linalg.eigh(np.cov(points.T))
    height, width = 4 * np.sqrt(variances.clip(0))  # two to either side
    angle = np.degrees(np.arctan2(*axes[::-1, 1]))
    return Ellipse(center, width, height, angle=angle, color=YOU, alpha=0.15, lw=0, label="left open")


def _to_data_url(figure: Figure) -> str:
    file = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(file, format="svg")
    return f"data:image/svg+xml;base64,{base64.b64encode(file.getvalue()).decode()}"

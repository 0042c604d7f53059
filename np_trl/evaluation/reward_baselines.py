"""
The reward models that NP-BTL is compared with, beside those that are variants of it.

All score embedded options for users given by context sets, as [`NPRewardModel`] does, so that [`NPRewardTrainer`] trains
and evaluates them on the same tasks.
"""

import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel

from np_trl.data import PreferenceRows
from np_trl.data.preference_rows import ID_COLUMNS
from np_trl.models import NPRewardModelConfig
from np_trl.models.layers import SkipMLP, Standardizer
from np_trl.models.memory import PosteriorMemory
from np_trl.models.modeling_np_reward import NPRewardOutput


class BaselineModel(PreTrainedModel):
    config_class = NPRewardModelConfig
    base_model_prefix = ""
    main_input_name = "option_embeds"
    has_gaussian_latents = False

    def _init_weights(self, module: nn.Module) -> None:
        """Leave every module as it starts."""

    def choice_logits(self, outputs: NPRewardOutput) -> torch.Tensor:
        """Log-odds that the first half of the scored options is preferred to the second half: `(P,)`."""
        first, second = outputs.logits.squeeze(-1).chunk(2)
        return first - second


class PopulationScore(BaselineModel):
    """
    Borda: an option's score is the log-odds of its share of wins among all users. Options without an id score 0.

    Args:
        config ([`NPRewardModelConfig`]):
            With `option_ids`.
    """

    def __init__(self, config: NPRewardModelConfig):
        super().__init__(config)
        self.scores = nn.Parameter(torch.zeros(len(config.option_ids) + 1), requires_grad=False)
        self.post_init()

    def fit(self, dataset: Dataset) -> "PopulationScore":
        """Count the wins of every option, with one win and one loss added."""
        numbers = {key: number for number, key in enumerate(self.config.option_ids, start=1)}
        counts = torch.ones(len(self.scores), 2)
        for side, name in enumerate(ID_COLUMNS):
            chosen = torch.tensor([numbers[key] for key in dataset[name]])
            counts[:, side] += torch.bincount(chosen, minlength=len(counts))
        self.scores.data[1:] = (counts[:, 0] / counts[:, 1]).log()[1:]
        return self

    def forward(self, option_embeds: torch.Tensor, option_ids: torch.LongTensor, **kwargs) -> NPRewardOutput:
        return NPRewardOutput(self.scores[option_ids].unsqueeze(-1))


class LinearUserModel(BaselineModel):
    """
    `r(y; w) = population(f(y)) + <code(f(y)), w> / K`, each user's w the most probable one given the context.

    The prior of w is normal; f is a [`SkipMLP`], or the embedding itself. Three baselines are of this class and differ in
    which parameters are learned: [`empirical_bayes`], [`from_scratch`] and [`linear_features`].

    Args:
        config ([`NPRewardModelConfig`]):
            With `context_config.memory_size` for the number K of features. `hidden_size` 0 is the embedding itself.
    """

    def __init__(self, config: NPRewardModelConfig):
        super().__init__(config)
        size = config.hidden_size or config.embed_size
        self.standardizer = Standardizer(config.embed_size)
        self.dropout = nn.Dropout(config.dropout)
        self.option_encoder = SkipMLP(config.embed_size, size, size) if config.hidden_size else nn.Identity()
        self.memory = PosteriorMemory(size, size, config.context_config.memory_size)
        self.memory.reset_parameters()
        self.memory.output.requires_grad_(False)  # P stays the identity: w is the mode itself
        self.post_init()

    def encode(self, embeds: torch.Tensor) -> torch.Tensor:
        return self.option_encoder(self.dropout(self.standardizer(embeds)))  # (..., hidden)

    def forward(self, option_embeds, context_embeds, context_mask, context_index, **kwargs) -> NPRewardOutput:
        hidden, contexts = self.encode(option_embeds), self.encode(context_embeds)
        present = context_mask.bool()  # (U, C)
        weights = self.memory(contexts[present], contexts, None, present.unsqueeze(-1))  # (U, K)
        personal = (self.memory.code(hidden) * weights[context_index]).mean(dim=-1, keepdim=True)  # (N, 1)
        return NPRewardOutput(self.memory.population(hidden) + personal)

    def freeze_all_but_the_prior(self) -> "LinearUserModel":
        self.requires_grad_(False)
        self.memory.log_variance.requires_grad_(True)
        return self


def empirical_bayes(config: NPRewardModelConfig) -> LinearUserModel:
    """Everything is learned on tasks, by the likelihood of their targets under the mode."""
    return LinearUserModel(config)


def from_scratch(config: NPRewardModelConfig) -> LinearUserModel:
    """A logistic regression for each user on the embeddings. Only the variance of the prior comes from other users."""
    model = LinearUserModel(config).freeze_all_but_the_prior()
    nn.init.eye_(model.memory.code.weight)
    nn.init.constant_(model.memory.log_variance, -3.0)
    return model


def linear_features(
    config: NPRewardModelConfig, dataset: Dataset, num_epochs: int = 5, batch_size: int = 1024
) -> LinearUserModel:
    """
    Features that all users share, learned with weights of each training user as free parameters; then, for new users, a
    logistic regression on them. The common scheme of RFM, PReF and LoRe, with a normal prior of the weights.
    """
    model, rows = LinearUserModel(config), PreferenceRows(dataset)
    embeds = rows.embeds(range(len(dataset)))  # (rows, 2, E)
    model.standardizer.fit(batch.flatten(0, 1) for batch in embeds.split(batch_size))
    users = torch.empty(len(dataset), dtype=torch.long)
    for user in range(len(rows)):
        users[rows.of_user(user)] = user
    weights = nn.Embedding(len(rows), config.context_config.memory_size)
    nn.init.normal_(weights.weight, std=0.1)
    parameters = [*(p for p in model.parameters() if p.requires_grad), *weights.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.1)
    for _ in range(num_epochs):
        for batch in torch.randperm(len(dataset)).split(batch_size):
            difference = torch.subtract(*model.encode(embeds[batch]).unbind(dim=1))  # (B, hidden)
            personal = (model.memory.code(difference) * weights(users[batch])).mean(dim=-1)
            loss = nn.functional.softplus(-(model.memory.population(difference).squeeze(-1) + personal)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    # the variance of the log-odds is the kernel's: there by K, here by K squared
    model.memory.log_variance.data.fill_((weights.weight.var() / weights.embedding_dim).log())
    return model.freeze_all_but_the_prior()

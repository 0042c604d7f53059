"""
The memory channel: the part of a user's latent that keeps the choices themselves, in a linear code of the options.

A context pair leaves the difference of its options' codes, with a weight: `P sum_c a_c (code(w_c) - code(l_c))`. The reward
model reads it as an inner product with the code of an option, so that before any training it already scores options by
what the user chose. The weights come from a learned gate, or from Bayes' rule.
"""

import torch
from torch import nn

from .layers import ZeroLinear, spread


class Memory(nn.Module):
    """
    What the two kinds of memory share: the code, and the map P of what was pooled, which starts as the identity.

    Args:
        embed_size (`int`):
            Size E of an option's embedding.
        hidden_size (`int`):
            Width of encoded options and pairs.
        memory_size (`int`):
            Size M of the memory.
    """

    def __init__(self, embed_size: int, hidden_size: int, memory_size: int):
        super().__init__()
        self.code = nn.Linear(embed_size, memory_size, bias=False)
        self.output = nn.Linear(memory_size, memory_size, bias=False)

    def reset_parameters(self) -> None:
        """Start as an isometry where the code is wide enough, otherwise as one in expectation."""
        memory_size, embed_size = self.code.weight.shape
        nn.init.orthogonal_(self.code.weight, gain=max(1.0, embed_size / memory_size) ** 0.5)
        nn.init.eye_(self.output.weight)

    def forward(
        self, options: torch.Tensor, hidden: torch.Tensor, pairs: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """
        Args:
            options (`torch.Tensor` of shape `(P, 2, E)`):
                Standardised options of the P context pairs that are present, chosen and rejected.
            hidden (`torch.Tensor` of shape `(U, C, 2, hidden)`):
                The same, encoded, in their places.
            pairs (`torch.Tensor` of shape `(U, C, hidden)`):
                Encoded pairs.
            mask (`torch.Tensor` of shape `(U, C, 1)`):
                `True` where a pair is present.

        Returns:
            `torch.Tensor` of shape `(U, M)`; zeros for a user without context.
        """
        difference = spread(self.code(options[:, 0] - options[:, 1]), mask.squeeze(-1))  # (U, C, M)
        return self.output(self.pool(difference, hidden, pairs, mask))

    def pool(self, difference, hidden, pairs, mask) -> torch.Tensor:
        raise NotImplementedError


class GatedMemory(Memory):
    """Weights from a learned gate of each pair, shrunken between their sum and their mean."""

    def __init__(self, embed_size: int, hidden_size: int, memory_size: int):
        super().__init__(embed_size, hidden_size, memory_size)
        self.gate = nn.Linear(hidden_size, 1)
        self.shrinkage = nn.Parameter(torch.empty(1))

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.zeros_(self.gate.weight)
        nn.init.constant_(self.gate.bias, 0.5413)  # softplus(0.5413) = 1
        nn.init.constant_(self.shrinkage, -2.0)

    def pool(self, difference, hidden, pairs, mask) -> torch.Tensor:
        gates = nn.functional.softplus(self.gate(pairs)) * mask  # (U, C, 1)
        # as the mean of a posterior is: evidence of a kind does not add up for ever
        weight = 1 + nn.functional.softplus(self.shrinkage) * gates.sum(dim=1)  # (U, 1)
        return (gates * difference).sum(dim=1) / weight


class PosteriorMemory(Memory):
    """
    Weights from Bayes' rule: what is pooled is the most probable w of a user whose log-odds are `m + <w, difference> / M`.

    The prior of w is normal with a learned variance, and m, the log-odds of the population, is linear in the encoded
    options. A choice that the population or the user's other choices explain weighs little.
    """

    def __init__(self, embed_size: int, hidden_size: int, memory_size: int):
        super().__init__(embed_size, hidden_size, memory_size)
        self.population = ZeroLinear(hidden_size, 1, bias=False)
        self.log_variance = nn.Parameter(torch.empty(1))

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.population.reset_parameters()
        nn.init.constant_(self.log_variance, -1.0)

    def pool(self, difference, hidden, pairs, mask) -> torch.Tensor:
        margins = self.population(hidden[:, :, 0] - hidden[:, :, 1]).squeeze(-1)  # (U, C)
        with torch.autocast(difference.device.type, enabled=False):
            variance = self.log_variance.float().exp()
            roots = difference.to(_precision(difference)) * (variance / difference.shape[-1]).sqrt()  # (U, C, M)
            kernel = roots @ roots.transpose(1, 2)  # (U, C, C)
            weights = posterior_weights(margins, kernel, mask.squeeze(-1)).to(variance)  # (U, C)
            pooled = variance * (weights.unsqueeze(1) @ difference.float()).squeeze(1)  # (U, M)
        return pooled.to(margins.dtype)


def posterior_weights(
    margins: torch.Tensor, kernel: torch.Tensor, mask: torch.Tensor, num_steps: int = 6
) -> torch.Tensor:
    """
    Find the mode of a Gaussian process given choices: the weights a of `f = K a` that maximise
    `sum_c log sigma(m_c + f_c) - f' K^-1 f / 2`.

    At the mode `a_c = sigma(-(m_c + f_c))`. It is found by maximising a quadratic lower bound again and again (Jaakkola
    and Jordan, 2000), which always ascends, and then by one step of Newton's method (Rasmussen and Williams, 2006,
    algorithm 3.1), through which alone gradients pass: at the mode that is the exact gradient. For strong priors (variances
    of f far above 10) more steps come closer to the mode.

    Args:
        margins (`torch.Tensor` of shape `(U, C)`):
            Log-odds m of the choices before the user is known.
        kernel (`torch.Tensor` of shape `(U, C, C)`):
            Prior covariance K of the user's part f of the log-odds.
        mask (`torch.Tensor` of shape `(U, C)`):
            `True` where there is a choice.
        num_steps (`int`, *optional*, defaults to `6`):
            How often the bound is maximised.

    Returns:
        `torch.Tensor` of shape `(U, C)`, in the precision of the kernel: 0 where there is no choice.
    """
    precision = kernel.dtype
    with torch.autocast(margins.device.type, enabled=False):
        margins, kernel, mask = (values.to(_precision(kernel)) for values in (margins, kernel, mask))
        logits = margins.detach()
        with torch.no_grad():
            for _ in range(num_steps):
                curvature = mask * _bound_curvature(logits)
                weights = _solve(kernel, curvature, mask / 2 - curvature * margins)
                logits = margins + (kernel @ weights.unsqueeze(-1)).squeeze(-1)
        user_part = (logits - margins).detach()
        gradient = mask * torch.sigmoid(-(margins + user_part))
        curvature = gradient * (1 - gradient)
        return _solve(kernel, curvature, curvature * user_part + gradient).to(precision)


def _bound_curvature(logits: torch.Tensor) -> torch.Tensor:
    """Curvature of the quadratic lower bound of `log sigma` that touches it at the logits; 1/4 at 0."""
    logits = logits.abs().clamp_min(1e-4)
    return torch.tanh(logits / 2) / (2 * logits)


def _solve(kernel: torch.Tensor, curvature: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Solve `(1 + W K) a = b` for a, with W the diagonal of the curvatures: `(U, C)`."""
    curvature = curvature.clamp_min(1e-12)
    root = curvature.sqrt()  # which has no gradient at 0
    # a diagonal of ones, so that the equations of any finite kernel can be solved: rounding errors stay below the jitter
    scale = (1 + curvature * kernel.diagonal(dim1=1, dim2=2)).rsqrt()  # (U, C)
    scaled = root * scale
    size = kernel.shape[-1]
    identity = torch.eye(size, device=kernel.device, dtype=kernel.dtype)
    equations = scaled.unsqueeze(2) * kernel * scaled.unsqueeze(1)
    equations = equations + torch.diag_embed(scale.square()) + 8 * size * torch.finfo(kernel.dtype).eps * identity
    right = scaled.unsqueeze(2) * (kernel @ target.unsqueeze(2))  # (U, C, 1)
    explained = torch.cholesky_solve(right, torch.linalg.cholesky(equations)).squeeze(2)
    return target - scaled * explained


def _precision(values: torch.Tensor) -> torch.dtype:
    """Double precision, in which the squares of any finite embedding are finite too; single where there is none."""
    return torch.float32 if values.device.type == "mps" else torch.float64

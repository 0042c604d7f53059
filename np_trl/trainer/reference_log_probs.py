"""Log-probs of the reference policy, which an evaluation needs of the same pairs at every number of contexts."""

import torch


class ReferenceLogProbs:
    """Reference log-probs of pairs, by the row of the pair in its dataset."""

    def __init__(self):
        self._log_probs: dict[int, tuple[float, float]] = {}

    def add(self, rows: torch.LongTensor, chosen: torch.Tensor, rejected: torch.Tensor) -> None:
        """
        Remember the log-probs of pairs.

        Args:
            rows (`torch.LongTensor` of shape `(P,)`):
                Which pairs.
            chosen, rejected (`torch.Tensor` of shape `(P,)`):
                Log-probs of their completions.
        """
        self._log_probs |= zip(rows.tolist(), zip(chosen.tolist(), rejected.tolist(), strict=True), strict=True)

    def find(self, rows: torch.LongTensor) -> torch.Tensor | None:
        """
        Look up pairs.

        Args:
            rows (`torch.LongTensor` of shape `(P,)`):
                Which pairs.

        Returns:
            `torch.Tensor` of shape `(2, P)`: chosen, rejected; or `None` if one of the pairs is not there.
        """
        rows = rows.tolist()
        if not all(row in self._log_probs for row in rows):
            return None
        return torch.tensor([self._log_probs[row] for row in rows]).T

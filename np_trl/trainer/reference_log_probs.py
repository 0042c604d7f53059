"""Log-probs of the reference policy, which an evaluation needs of the same pairs at every number of contexts."""

import torch


class ReferenceLogProbs:
    """
    Reference log-probs of pairs, by the row of the pair in its dataset.

    Args:
        num_rows (`int`):
            Number of rows of the dataset.
    """

    def __init__(self, num_rows: int):
        self._log_probs = torch.full((2, num_rows), torch.nan)

    def add(self, rows: torch.LongTensor, chosen: torch.Tensor, rejected: torch.Tensor) -> None:
        """
        Remember the log-probs of pairs.

        Args:
            rows (`torch.LongTensor` of shape `(P,)`):
                Which pairs.
            chosen, rejected (`torch.Tensor` of shape `(P,)`):
                Log-probs of their completions.
        """
        self._log_probs[:, rows.cpu()] = torch.stack([chosen, rejected]).to(self._log_probs)

    def find(self, rows: torch.LongTensor) -> torch.Tensor | None:
        """
        Look up pairs.

        Args:
            rows (`torch.LongTensor` of shape `(P,)`):
                Which pairs.

        Returns:
            `torch.Tensor` of shape `(2, P)`: chosen, rejected; or `None` if one of the pairs is not there.
        """
        found = self._log_probs[:, rows.cpu()]
        return None if found.isnan().any() else found

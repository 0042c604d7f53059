"""
Appendix D.1: users of three modes, on pairs on which one of these differs from the other two (Fig. 6a).

```sh
python examples/paper/fig6_three_modes.py \
    --dataset_name alpacaeval_aspects/items.parquet --embeddings alpacaeval_aspects/embeddings.parquet
```

On UltraFeedback: `--dataset_name openbmb/UltraFeedback --modes helpfulness honesty truthfulness`.
"""

from figures import parse
from modes import ItemArguments, compare_on_modes


if __name__ == "__main__":
    compare_on_modes(*parse(ItemArguments, "fig6_three_modes"))

"""
Section 4.2: users of two modes who disagree on every pair (Fig. 2a). NP-BTL by the number of choices given, beside BTL on
all users and on those of one mode.

On UltraFeedback, with a table of embeddings of your own (see `np_trl/data/embeddings.py`):

```sh
python examples/paper/fig2_rewards.py \
    --dataset_name openbmb/UltraFeedback --embeddings embeddings.parquet --modes helpfulness honesty
```

The numbers in `results` are of AlpacaEval answers instead, as the recipe has it: a judge's score against brevity.

```sh
python examples/paper/fig2_rewards.py \
    --dataset_name alpacaeval_aspects/items.parquet --embeddings alpacaeval_aspects/embeddings.parquet
```
"""

from figures import parse
from modes import ItemArguments, compare_on_modes


if __name__ == "__main__":
    compare_on_modes(*parse(ItemArguments, "fig2_rewards"))

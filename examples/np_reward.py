"""
Train NP-BTL, a reward model that adapts to a user from a few choices.

Without arguments: Example 4.1 of the paper, with BTL and DPL beside it and the Bayes limit, in two minutes on 2 CPU
cores.

```sh
accelerate launch examples/np_reward.py
```

On your own preferences, embedded by any frozen model (columns `user_id`, `chosen_embeds`, `rejected_embeds`; or the
texts, with their embeddings in a file of their own, `--embeddings`):

```sh
accelerate launch examples/np_reward.py \
    --dataset_name train.parquet \
    --eval_dataset_name validation.parquet \
    --output_dir runs/np_reward \
    --max_steps 1000 \
    --hidden_size 256
```
"""

from np_trl.scripts.reward import ScriptArguments, main, run


__all__ = ["ScriptArguments", "main", "run"]

if __name__ == "__main__":
    run()

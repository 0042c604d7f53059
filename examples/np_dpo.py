"""
Train NP-DPO, a language model that writes for each user after a few of that user's choices.

Without arguments: a simulated population of users with opposed styles and a tiny Gemma, offline on 2 CPU cores in less
than five minutes. It prints how well the policy adapts to new users, against the Bayes limit, other users' contexts and
plain DPO, and two users' answers to the same prompts.

```sh
accelerate launch examples/np_dpo.py
```

On your own preferences (TRL's preference format plus a column `user_id`):

```sh
accelerate launch examples/np_dpo.py \
    --model_name_or_path google/gemma-2b \
    --dataset_name train.parquet \
    --eval_dataset_name validation.parquet \
    --output_dir runs/np_dpo \
    --use_peft --lora_r 512 --lora_alpha 1024 --lora_target_modules q_proj v_proj \
    --precompute_ref_log_probs
```

The same command measures what it is to be compared with (see `np_trl/evaluation/dpo_baselines.py`), on the same users and pairs:

```sh
accelerate launch examples/np_dpo.py --config examples/configs/np_dpo_style.yaml --baselines mixture dedicated few_shot base
```
"""

from np_trl.scripts.dpo import ScriptArguments, main, run


__all__ = ["ScriptArguments", "main", "run"]

if __name__ == "__main__":
    run()

"""
Evaluate a trained reward model or policy on other users: accuracy, likelihood and calibration for every number of
context pairs, with other users' contexts as a control.

```sh
python examples/evaluate_model.py --model_name_or_path runs/np_reward --dataset_name test.parquet --output_dir runs/evaluation
```

Texts with their embeddings in a file of their own, and only some of the rows:

```sh
python examples/evaluate_model.py \
    --model runs/np_reward_jester \
    --dataset_name pairs.parquet \
    --embeddings embeddings.parquet \
    --where split=val \
    --num_contexts 0 1 3 5 10 20 \
    --output_dir runs/evaluation
```

A merged policy needs its reference policy (the base model it was trained from). With `--num_generations` it writes for the
users too: length, repetition, KL to the reference and, given an opponent and judges, how often it wins:

```sh
python examples/evaluate_model.py \
    --model_name_or_path runs/np_dpo/merged \
    --ref_model_name_or_path google/gemma-2b \
    --dataset_name test.parquet \
    --group_column group \
    --num_generations 2 \
    --opponent runs/np_dpo/mixture \
    --judges helpfulness=runs/reward_helpfulness honesty=runs/reward_honesty \
    --output_dir runs/evaluation
```

A judge is a reward model of texts that knows one group alone (`np_reward.py --where group=honesty --max_context 0
--embedder_name_or_path ...`), or `style`: the exact detectors of the style population.
"""

from np_trl.scripts.evaluate import ScriptArguments, main, run


__all__ = ["ScriptArguments", "main", "run"]

if __name__ == "__main__":
    run()

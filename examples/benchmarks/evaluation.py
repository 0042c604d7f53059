"""
An evaluation of NP-DPO over all numbers of context pairs, against one evaluation for each of them.

Reference log-probs of a pair are computed once in an evaluation, and its embeddings once for all, so the first must be
cheaper. The two alternate in one process; the figure is the median of paired ratios.

```sh
python examples/benchmarks/evaluation.py
```
"""

import argparse
import statistics
import tempfile
import time

from dpo_step import SMALL_GEMMA, build_base, build_rows, build_trainer
from peft import LoraConfig
from report import report

from np_trl import NPDPOTrainer


NUM_CONTEXTS, USERS, PAIRS = [0, 1, 3, 5, 10], 4, 20


def build(path: str) -> NPDPOTrainer:
    build_base(path, SMALL_GEMMA)
    arguments = {
        "output_dir": path,
        "bf16": False,
        "report_to": "none",
        "max_length": None,
        "per_device_eval_batch_size": 4,
        "eval_num_targets": PAIRS - max(NUM_CONTEXTS),
        "eval_shuffled_contexts": [],
    }
    rows = build_rows(users=USERS, pairs=PAIRS, prompt=24, completion=40, embed_size=256)
    context_config = {"embed_size": 256, "hidden_size": 256, "latent_size": 256}
    lora = LoraConfig(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    return build_trainer("np_dpo", path, rows, arguments, context_config, lora)


def evaluate(trainer: NPDPOTrainer, num_contexts: list[int]) -> tuple[float, dict]:
    trainer.args.eval_num_contexts = num_contexts
    start = time.perf_counter()
    metrics = trainer.evaluate(trainer.train_dataset)
    return time.perf_counter() - start, metrics


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--num_rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as path:
        trainer = build(path)
        together, ratios = [], []
        for _ in range(arguments.num_rounds):
            seconds, metrics = evaluate(trainer, NUM_CONTEXTS)
            each = [evaluate(trainer, [number]) for number in NUM_CONTEXTS]
            together.append(seconds)
            ratios.append(seconds / sum(seconds for seconds, _ in each))
    assert metrics["eval_nc10_accuracy"] == each[-1][1]["eval_nc10_accuracy"]
    figures = {
        "over all N_C, median s": statistics.median(together),
        "over all N_C to each by itself": statistics.median(ratios),
    }
    report("evaluation", figures, seed=0)

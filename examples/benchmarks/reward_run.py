"""
A whole NP-BTL training run at the size of the paper's HH data, against a bare loop of the same matrix products.

28,763 pairs with embeddings of size 4,096 in float16 on disk; 450 steps of 64 tasks, N_T = 20, N_C <= 10. The bare loop
repeats the matrix products of a step, with operands of the same shapes, and nothing else; it runs after every step, so that
both see the same machine. Memory is what the process's peak grew by, from before the data were opened.

```sh
python examples/benchmarks/reward_run.py
```
"""

import argparse
import resource
import tempfile
import time

from datasets import load_from_disk
from report import report
from reward_step import EMBED, ProductRecorder, build_model, write_rows
from transformers import TrainerCallback

from np_trl import NPRewardConfig, NPRewardTrainer


class BareLoop(TrainerCallback):
    """After every step, repeats the products of the first step, and times both."""

    def __init__(self):
        self.recorder = ProductRecorder()
        self.step_seconds = self.bare_seconds = 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        self.recorder.__enter__()
        self.last = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 1:
            self.recorder.__exit__(None, None, None)
        start = time.perf_counter()
        self.recorder.repeat()
        end = time.perf_counter()
        if state.global_step > 1:
            self.step_seconds += start - self.last
            self.bare_seconds += end - start
        self.last = end


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def train(path: str, num_steps: int, callbacks: list[TrainerCallback]) -> None:
    args = NPRewardConfig(path, max_steps=num_steps, report_to="none", save_strategy="no")
    rows = load_from_disk(f"{path}/rows")
    NPRewardTrainer(build_model(), args=args, train_dataset=rows, callbacks=callbacks).train()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--num_pairs", type=int, default=28_763)
    parser.add_argument("--num_steps", type=int, default=450)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as path:
        write_rows(path, arguments.num_pairs)
        before = peak_bytes()
        train(path, 10, [])
        growth = peak_bytes() - before
        loop = BareLoop()
        train(path, arguments.num_steps, [loop])
    embedding_bytes = 2 * 2 * EMBED * arguments.num_pairs
    figures = {
        "training, s": loop.step_seconds,
        "bare loop, s": loop.bare_seconds,
        "training to bare loop": loop.step_seconds / loop.bare_seconds,
        "growth of peak memory, MiB": growth / 2**20,
        "embeddings in float16, MiB": embedding_bytes / 2**20,
        "memory to embeddings": growth / embedding_bytes,
    }
    report("reward_run", figures, seed=0)

"""
A page where a person can try a policy (extra `app`): choose between two answers, be asked the most telling question next,
see where that places one among other people, and read what is written for oneself, one's opposite and nobody.

The demo that `accelerate launch examples/np_dpo.py` trains, at http://127.0.0.1:7860 and without anything from the network:

```sh
python examples/app.py
```

Another policy, with TRL's preference pairs and `user_id` of the people to stand among, whose pairs are the questions too:

```sh
python examples/app.py --model user/np_dpo_style --dataset users.parquet
```
"""

from dataclasses import dataclass, field
from pathlib import Path

from accelerate import PartialState
from interview import Interview, InterviewArguments
from page import InterviewPage
from population import Population
from transformers import AutoTokenizer
from transformers.hf_argparser import HfArg
from trl import TrlParser

from np_trl import load_policy
from np_trl.data.loading import load_preferences


@dataclass
class ScriptArguments(InterviewArguments):
    model_name_or_path: str = HfArg(
        aliases=["--model"],
        default="runs/np_dpo_style",
        help="A trained policy: a merged one, or an adapter with FiLM.",
    )
    dataset_name: str | None = HfArg(
        aliases=["--dataset"],
        default=None,
        help="File (parquet, JSON lines, CSV) or dataset of users. Default: `users.parquet` beside the policy.",
    )
    split: str = field(default="test", metadata={"help": "Split of a dataset that has several."})
    group_column: str = field(
        default="group", metadata={"help": "Column that says what kind of user each is, where there is one."}
    )
    num_users: int = field(default=160, metadata={"help": "Largest number of users to stand among."})
    pool_size: int = field(default=32, metadata={"help": "Largest number of pairs that questions are selected from."})
    dtype: str = field(default="float32", metadata={"help": "Data type of the policy."})
    port: int = field(default=7860, metadata={"help": "Port of the page, which this machine alone can open."})

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.port < 2**16:
            raise ValueError(f"`port={self.port}` must be above 0 and below {2**16}.")


def load_interview(script_args: ScriptArguments) -> Interview:
    """Load the policy and the people."""
    path = script_args.model_name_or_path
    dataset_name = script_args.dataset_name or str(Path(path) / "users.parquet")
    if script_args.dataset_name is None and not Path(dataset_name).is_file():
        raise ValueError(
            f"There is no {dataset_name!r}. Train the demo (`accelerate launch examples/np_dpo.py`), or name a policy with "
            "`--model` and preference pairs of its users with `--dataset`."
        )
    policy = load_policy(path, dtype=script_args.dtype).to(PartialState().device).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    dataset = load_preferences(dataset_name, script_args.split)
    if script_args.group_column not in ("group", *dataset.column_names):
        raise ValueError(
            f"`group_column={script_args.group_column!r}` is no column of {dataset_name!r}, which has {dataset.column_names}."
        )
    population = Population(
        policy,
        tokenizer,
        dataset,
        num_choices=script_args.num_questions,
        num_users=script_args.num_users,
        pool_size=script_args.pool_size,
        group_column=script_args.group_column,
        seed=script_args.seed,
    )
    return Interview(policy, tokenizer, population, script_args)


if __name__ == "__main__":
    (script_args,) = TrlParser(ScriptArguments).parse_args_and_config()
    InterviewPage(load_interview(script_args)).launch(script_args.port)

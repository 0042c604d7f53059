"""
Sample n answers to each prompt from any language model, and print the one that each user likes best by NP-BTL. Users are given
by a few choices in JSON files, `{"pairs": [{"prompt": ..., "chosen": ..., "rejected": ...}]}`, or by saved profiles. No
policy is trained.

```sh
python examples/grpo.py  # trains the reward model
python examples/best_of_n.py \
    --reward_model_name_or_path runs/grpo_style/np_reward \
    --users examples/users/formal_lists.json examples/users/casual_prose.json
```
"""

from dataclasses import dataclass, field
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from trl import TrlParser

from np_trl import NPRewardModel, UserProfile, best_of_n
from np_trl.data.ranges import check_at_least
from np_trl.evaluation.generations import check_writer
from np_trl.models.texts import check_text
from np_trl.users.user_file import name_users


@dataclass
class ScriptArguments:
    reward_model_name_or_path: str = field(
        metadata={"help": "A trained reward model whose config names its embedder."}
    )
    users: list[str] = field(
        metadata={"help": "JSON files with the choices of a user each, or profiles (.safetensors)."}
    )
    model_name_or_path: str = field(
        default=str(Path(__file__).resolve().parent / "style_gemma"),
        metadata={"help": "The language model that writes the candidates."},
    )
    prompts: list[str] = field(
        default_factory=lambda: ["How do I clean the bike?", "How do I tune the radio?"],
        metadata={"help": "Prompts to answer."},
    )
    num_candidates: int = field(default=16, metadata={"help": "n: answers that are sampled to each prompt."})
    max_new_tokens: int = field(default=64, metadata={"help": "Largest number of tokens of an answer."})
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature."})
    seed: int = field(default=0, metadata={"help": "Seed of sampling."})

    def __post_init__(self):
        check_at_least(1, num_candidates=self.num_candidates, max_new_tokens=self.max_new_tokens)
        check_at_least(0, seed=self.seed)
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"`temperature={self.temperature}` must be above 0, and finite.")
        check_writer(self.model_name_or_path)
        for index, prompt in enumerate(self.prompts):
            check_text(prompt, "prompts", f"entry {index}")
        name_users(self.users)


def write_candidates(script_args: ScriptArguments) -> list[list[str]]:
    """Sample n answers to each prompt."""
    tokenizer = AutoTokenizer.from_pretrained(script_args.model_name_or_path, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(script_args.model_name_or_path).eval()
    inputs = tokenizer(script_args.prompts, padding=True, return_tensors="pt")
    n = script_args.num_candidates
    outputs = model.generate(
        **inputs,
        do_sample=True,
        temperature=script_args.temperature,
        max_new_tokens=script_args.max_new_tokens,
        num_return_sequences=n,
    )
    texts = tokenizer.batch_decode(outputs[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [texts[start : start + n] for start in range(0, len(texts), n)]


def main(script_args: ScriptArguments) -> None:
    set_seed(script_args.seed)
    reward_model = NPRewardModel.from_pretrained(script_args.reward_model_name_or_path)
    users = {name: UserProfile.from_file(path, reward_model) for name, path in name_users(script_args.users).items()}
    candidates = write_candidates(script_args)
    picks = {name: best_of_n(reward_model, script_args.prompts, candidates, user) for name, user in users.items()}
    for index, prompt in enumerate(script_args.prompts):
        print(f"\n{prompt}")
        for name, texts in picks.items():
            print(f"  for {name}:\n   " + texts[index].replace("\n", "\n    "))


if __name__ == "__main__":
    (script_args,) = TrlParser(ScriptArguments).parse_args_and_config()
    main(script_args)

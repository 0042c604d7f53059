"""
Score completions for a user who is given by a few choices in a JSON file, `{"pairs": [{"prompt": ..., "chosen": ...,
"rejected": ...}]}`, or by a saved profile, and for a user without choices.

```sh
python examples/score.py \
    --model_name_or_path runs/np_reward_jester \
    --user user.json \
    --prompt "Tell me a joke." \
    --completions "Knock, knock." "A man walks into a bar."
```
"""

from dataclasses import dataclass, field

from trl import TrlParser

from np_trl import NPRewardModel, UserProfile


@dataclass
class ScriptArguments:
    model_name_or_path: str = field(metadata={"help": "A trained reward model whose config names its embedder."})
    prompt: str = field(metadata={"help": "What the completions complete."})
    completions: list[str] = field(
        metadata={"help": "Completions to score. Only differences of rewards mean anything."}
    )
    user: str | None = field(
        default=None,
        metadata={
            "help": "JSON file with the choices of a user, or a profile (.safetensors). Without it nobody alone is asked."
        },
    )


def main(script_args: ScriptArguments) -> None:
    model = NPRewardModel.from_pretrained(script_args.model_name_or_path)
    options = [{"prompt": script_args.prompt, "completion": text} for text in script_args.completions]
    columns = {"nobody": model.score(options)}
    if script_args.user is not None:
        columns["user"] = model.score(options, UserProfile.from_file(script_args.user, model).latents)
    print("".join(f"{name:>9}" for name in columns))
    for index, text in enumerate(script_args.completions):
        print("".join(f"{rewards[index]:>9.4f}" for rewards in columns.values()) + f"  {text}")


if __name__ == "__main__":
    (script_args,) = TrlParser(ScriptArguments).parse_args_and_config()
    main(script_args)

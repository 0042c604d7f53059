"""The command that exports users: `np-trl export`, `examples/export.py`."""

from dataclasses import dataclass, field
from pathlib import Path

from np_trl.scripts.command_parser import CommandParser
from np_trl.trainer import load_policy
from np_trl.users import UserProfile, export_adapter, export_model
from np_trl.users.user_file import name_users


FORMS = ("adapter", "model")


@dataclass
class ScriptArguments:
    model_name_or_path: str = field(metadata={"help": "A trained policy: a merged one, or an adapter with FiLM."})
    users: list[str] = field(
        metadata={"help": "JSON files with the choices of users, or profiles (.safetensors) of them."}
    )
    output_dir: str = field(metadata={"help": "Where each user gets a folder with the name of the file."})
    form: str = field(default="adapter", metadata={"help": f"What is written: {' or '.join(FORMS)}."})

    def __post_init__(self):
        if self.form not in FORMS:
            raise ValueError(f"`form={self.form!r}` is unknown. Choose one of {list(FORMS)}.")
        name_users(self.users)


def main(script_args: ScriptArguments) -> None:
    policy = load_policy(script_args.model_name_or_path).eval()
    users = {name: UserProfile.from_file(path, policy) for name, path in name_users(script_args.users).items()}
    if script_args.form == "adapter":
        export_adapter(policy, users, script_args.output_dir)
    else:
        for name, user in users.items():
            export_model(policy, user, Path(script_args.output_dir, name), policy.get_tokenizer())
    for name in users:
        print(f"{name}: {Path(script_args.output_dir, name)}")


def run() -> None:
    """Parse the command line and run."""
    main(*CommandParser("export", ScriptArguments).parse_args_and_config())

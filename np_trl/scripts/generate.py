"""The command that writes for a user: `np-trl generate`, `examples/generate.py`."""

from dataclasses import dataclass, field

from transformers import AutoTokenizer, set_seed

from np_trl.data.ranges import check_at_least
from np_trl.models.texts import check_text
from np_trl.scripts.command_parser import CommandParser
from np_trl.trainer import load_policy
from np_trl.users import UserProfile, read_pairs
from np_trl.users.profile_file import is_profile


@dataclass
class ScriptArguments:
    model_name_or_path: str = field(metadata={"help": "A trained policy: a merged one, or an adapter with FiLM."})
    user: str | None = field(
        default=None,
        metadata={
            "help": "JSON file with the choices of a user, or a profile (.safetensors). Without it the base model writes."
        },
    )
    prompts: list[str] = field(
        default_factory=lambda: ["How do I clean the bike?", "How do I tune the radio?"],
        metadata={"help": "Prompts to answer."},
    )
    max_new_tokens: int = field(default=64, metadata={"help": "Largest number of tokens of an answer."})
    temperature: float = field(default=0.7, metadata={"help": "Sampling temperature."})
    top_p: float = field(default=0.95, metadata={"help": "Probability mass of nucleus sampling."})
    seed: int = field(default=0, metadata={"help": "Seed of sampling."})
    as_messages: bool | None = field(
        default=None,
        metadata={
            "help": "Whether prompts are messages, to which the chat template applies. Default: where the choices of `user` are "
            "messages. A profile does not say what they were: then prompts are texts."
        },
    )

    def __post_init__(self):
        if not self.prompts:
            raise ValueError("`prompts` is empty. Give at least one prompt.")
        check_at_least(1, max_new_tokens=self.max_new_tokens)
        check_at_least(0, seed=self.seed)
        if not (0 < self.temperature < float("inf") and 0 < self.top_p <= 1):
            raise ValueError(
                f"`temperature={self.temperature}` must be above 0, and `top_p={self.top_p}` above 0 and at most 1."
            )
        for index, prompt in enumerate(self.prompts):
            check_text(prompt, "prompts", f"entry {index}")


def tokenize(prompts: list[str], tokenizer, as_messages: bool):
    """Tokenize prompts as texts, or as messages to a model whose users chose between answers to messages."""
    if not as_messages:
        return tokenizer(prompts, padding=True, return_tensors="pt")
    return tokenizer.apply_chat_template(
        [[{"role": "user", "content": prompt}] for prompt in prompts],
        add_generation_prompt=True,
        padding=True,
        return_dict=True,
        return_tensors="pt",
    )


def chose_between_messages(path: str | None) -> bool:
    """Whether a user's choices, in a JSON file, are between messages."""
    pairs = [] if path is None or is_profile(path) else read_pairs(path)
    return bool(pairs) and isinstance(pairs[0]["chosen"], list)


def main(script_args: ScriptArguments) -> None:
    as_messages = script_args.as_messages
    if as_messages is None:
        as_messages = chose_between_messages(script_args.user)
    model = load_policy(script_args.model_name_or_path).eval()  # has the clearest error for a path
    tokenizer = AutoTokenizer.from_pretrained(script_args.model_name_or_path, padding_side="left")
    users = {}
    if script_args.user is not None:
        latents = UserProfile.from_file(script_args.user, model, tokenizer).latents  # (1, Z)
        users["latents"] = latents.expand(len(script_args.prompts), -1)
    inputs = tokenize(script_args.prompts, tokenizer, as_messages)
    set_seed(script_args.seed)  # after loading, which draws
    outputs = model.generate(
        **inputs,
        **users,
        do_sample=True,
        temperature=script_args.temperature,
        top_p=script_args.top_p,
        top_k=0,
        max_new_tokens=script_args.max_new_tokens,
    )
    answers = tokenizer.batch_decode(outputs[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    for prompt, answer in zip(script_args.prompts, answers, strict=True):
        print(f"\n{prompt}\n{answer}")


def run() -> None:
    """Parse the command line and run."""
    main(*CommandParser("generate", ScriptArguments).parse_args_and_config())

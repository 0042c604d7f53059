"""
Pre-train a small Gemma from scratch, with a tokenizer of its own, where no pre-trained one is at hand.

Without arguments: the tiny Gemma that ships in `examples/style_gemma`, on answers of the style population. It learns the
language, not the preferences: every style is equally likely, and the prompts kept for evaluation do not occur. Ten minutes
on 2 CPU cores.

```sh
python examples/pretrain_gemma.py --output_dir examples/style_gemma
```

On the texts of preference pairs, chosen and rejected alike, each once an epoch:

```sh
python examples/pretrain_gemma.py \
    --dataset_name persona_statements/pairs.parquet --where split=train \
    --vocab_size 4096 --hidden_size 256 --num_layers 4 --num_train_epochs 20 --output_dir runs/persona_gemma
```
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GemmaConfig, GemmaForCausalLM, PreTrainedTokenizerFast, set_seed
from trl import SFTConfig, SFTTrainer, TrlParser

from np_trl.data.loading import load_preferences
from np_trl.data.ranges import check_at_least
from np_trl.populations.style import STYLES, split_prompts
from np_trl.populations.style_grammar import write_answer
from np_trl.trainer.sharing_trainer import whole_model


EXAMPLE = "style_population"


@dataclass
class ScriptArguments:
    output_dir: str = field(
        default=str(Path(__file__).parent / "style_gemma"), metadata={"help": "Where model and tokenizer go."}
    )
    dataset_name: list[str] = field(
        default_factory=lambda: [EXAMPLE],
        metadata={"help": f"'{EXAMPLE}', or files or datasets of preference pairs, whose texts are learned."},
    )
    where: list[str] = field(default_factory=list, metadata={"help": "Conditions `column=value` on the pairs."})
    num_answers: int = field(default=100_000, metadata={"help": f"Answers of '{EXAMPLE}'."})
    vocab_size: int = field(default=768, metadata={"help": "Largest number of tokens of the tokenizer."})
    hidden_size: int = field(default=80, metadata={"help": "Width of the model, with a head for each fourth of it."})
    num_layers: int = field(default=3, metadata={"help": "Number of decoder layers."})
    max_length: int = field(default=128, metadata={"help": "Largest number of tokens of a text."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "How often every text is seen."})
    batch_size: int = field(default=64, metadata={"help": "Texts at once."})
    learning_rate: float = field(default=3e-3, metadata={"help": "Largest learning rate."})
    num_threads: int | None = field(default=None, metadata={"help": "CPU threads."})
    seed: int = field(default=0, metadata={"help": "Seed of texts, weights and order."})

    def __post_init__(self):
        check_at_least(1, num_answers=self.num_answers, num_layers=self.num_layers, batch_size=self.batch_size)
        check_at_least(259, vocab_size=self.vocab_size)  # all bytes, and three special tokens
        check_at_least(2, max_length=self.max_length)  # a token and the one that follows
        if self.hidden_size < 8 or self.hidden_size % 8:
            raise ValueError(f"`hidden_size={self.hidden_size}` must be a multiple of 8: four heads of an even width.")
        if not (self.num_train_epochs > 0 and self.learning_rate > 0):
            raise ValueError(
                f"`num_train_epochs={self.num_train_epochs}` and `learning_rate={self.learning_rate}` must be above 0."
            )
        if EXAMPLE in self.dataset_name and (len(self.dataset_name) > 1 or self.where):
            raise ValueError(f"`dataset_name` is {EXAMPLE!r} alone, without `where`, or names files and datasets.")

    def write_corpus(self) -> Dataset:
        """Write or read the texts to learn: `prompt` and `completion`."""
        if self.dataset_name == [EXAMPLE]:
            return write_answers(self.num_answers, self.seed)
        return concatenate_datasets([read_texts(name, self.where) for name in self.dataset_name])


def write_answers(num_answers: int, seed: int) -> Dataset:
    rng = np.random.default_rng(seed)
    prompts, _ = split_prompts()
    rows = []
    for _ in range(num_answers):
        prompt = str(rng.choice(prompts))
        rows.append({"prompt": prompt, "completion": write_answer(prompt, STYLES[rng.integers(len(STYLES))], rng)})
    return Dataset.from_list(rows)


def read_texts(name: str, where: list[str]) -> Dataset:
    pairs, columns = load_preferences(name, where=where), ["prompt", "chosen", "rejected"]
    if not set(columns) <= set(pairs.column_names):
        raise ValueError(
            f"{name!r} has the columns {pairs.column_names}, but {columns} are learned. Name preference pairs."
        )
    pairs = pairs.select_columns(columns)
    if not isinstance(pairs[0]["prompt"], str):
        raise ValueError(
            f"The prompts of {name!r} are conversations, but texts are learned. Name pairs of plain text."
        )
    texts = dict.fromkeys((row["prompt"], row[side]) for row in pairs for side in ("chosen", "rejected"))
    return Dataset.from_list([{"prompt": prompt, "completion": completion} for prompt, completion in texts])


def train_tokenizer(corpus: Dataset, vocab_size: int, max_length: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<pad>", "<eos>", "<bos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((row["prompt"] + row["completion"] for row in corpus), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
    )


def build_model(tokenizer: PreTrainedTokenizerFast, hidden_size: int, num_layers: int) -> GemmaForCausalLM:
    config = GemmaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=hidden_size // 4,
        max_position_embeddings=tokenizer.model_max_length,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    return GemmaForCausalLM(config)


def main(script_args: ScriptArguments) -> None:
    if script_args.num_threads is not None:
        check_at_least(1, num_threads=script_args.num_threads)
        torch.set_num_threads(script_args.num_threads)
    set_seed(script_args.seed)
    corpus = script_args.write_corpus()
    tokenizer = train_tokenizer(corpus, script_args.vocab_size, script_args.max_length)
    training_args = SFTConfig(
        output_dir=str(Path(script_args.output_dir) / "checkpoints"),
        num_train_epochs=script_args.num_train_epochs,
        per_device_train_batch_size=script_args.batch_size,
        learning_rate=script_args.learning_rate,
        max_length=script_args.max_length,
        lr_scheduler_type="cosine",
        warmup_steps=100,
        logging_steps=100,
        save_strategy="no",
        report_to="none",
        bf16=torch.cuda.is_available(),
        gradient_checkpointing=False,
        seed=script_args.seed,
    )
    model = build_model(tokenizer, script_args.hidden_size, script_args.num_layers)
    trainer = SFTTrainer(model, training_args, train_dataset=corpus, processing_class=tokenizer)
    trainer.train()
    with whole_model(script_args.output_dir, model.config.model_type, tokenizer) as folder:
        trainer.model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main(*TrlParser(ScriptArguments).parse_args_and_config())

"""
Pre-train the tiny Gemma that ships in `examples/style_gemma` on answers of the style population.

The model learns the language, not the preferences: every style is equally likely, and the prompts kept for evaluation
do not occur. Ten minutes on 2 CPU cores.

```sh
python examples/pretrain_style_gemma.py --output_dir examples/style_gemma
```
"""

import argparse
from pathlib import Path

import numpy as np
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GemmaConfig, GemmaForCausalLM, PreTrainedTokenizerFast, set_seed
from trl import SFTConfig, SFTTrainer

from np_trl.data.style_grammar import write_answer
from np_trl.data.style_population import STYLES, split_prompts


def write_corpus(num_answers: int, seed: int) -> Dataset:
    rng = np.random.default_rng(seed)
    prompts, _ = split_prompts()
    rows = []
    for _ in range(num_answers):
        prompt = str(rng.choice(prompts))
        rows.append({"prompt": prompt, "completion": write_answer(prompt, STYLES[rng.integers(len(STYLES))], rng)})
    return Dataset.from_list(rows)


def train_tokenizer(corpus: Dataset) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=768,
        special_tokens=["<pad>", "<eos>", "<bos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((row["prompt"] + row["completion"] for row in corpus), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", model_max_length=128
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
        max_position_embeddings=128,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    return GemmaForCausalLM(config)


def main(args: argparse.Namespace) -> None:
    set_seed(args.seed)
    corpus = write_corpus(args.num_answers, args.seed)
    tokenizer = train_tokenizer(corpus)
    model = build_model(tokenizer, args.hidden_size, args.num_layers)
    training_args = SFTConfig(
        output_dir=str(args.output_dir / "checkpoints"),
        num_train_epochs=1,
        per_device_train_batch_size=64,
        learning_rate=args.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=100,
        logging_steps=100,
        save_strategy="no",
        report_to="none",
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        seed=args.seed,
    )
    trainer = SFTTrainer(model, training_args, train_dataset=corpus, processing_class=tokenizer)
    trainer.train()
    model.save_pretrained(args.output_dir)
    tokenizer.save_pretrained(args.output_dir)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output_dir", type=Path, default=Path(__file__).parent / "style_gemma")
    parser.add_argument("--num_answers", type=int, default=100_000)
    parser.add_argument("--hidden_size", type=int, default=80)
    parser.add_argument("--num_layers", type=int, default=3)
    parser.add_argument("--learning_rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    main(parser.parse_args())

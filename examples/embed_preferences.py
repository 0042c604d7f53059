"""
Embed every text of preference pairs once, with a sentence encoder or a language model, frozen. The table that comes out is
what `--embeddings` of the other scripts takes.

```sh
python examples/embed_preferences.py \
    --model_name_or_path sentence-transformers/all-MiniLM-L6-v2 --normalize true \
    --dataset_name data/prism/train.parquet data/prism/validation.parquet data/prism/test.parquet \
    --output_file data/prism/embeddings.parquet
```

As in the paper (section C.2), by the last hidden state of the last token of prompt and response:

```sh
python examples/embed_preferences.py \
    --model_name_or_path meta-llama/Meta-Llama-3-8B --dtype bfloat16 \
    --kind prompt_response --pooling last --max_length 1024 \
    --dataset_name data/ultrafeedback_hh/{train,validation,test}.parquet \
    --output_file data/ultrafeedback_hh/embeddings.parquet
```

The start of a text is kept where it has more than `max_length` tokens. Train a reward model with the same settings,
`--embedder_name_or_path`, `--embedder_pooling`, ..., and it embeds new texts alike.
"""

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path


sys.path.pop(0)  # this folder: its evaluate.py would hide the library `evaluate`

import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from tqdm.auto import tqdm  # noqa: E402
from trl import TrlParser  # noqa: E402

from np_trl import TextEmbedder  # noqa: E402
from np_trl.data.embeddings import option_text, options_of, text_id  # noqa: E402
from np_trl.data.loading import load_preferences  # noqa: E402


@dataclass
class ScriptArguments:
    model_name_or_path: str = field(metadata={"help": "An encoder or a language model, on the Hub or in a folder."})
    dataset_name: list[str] = field(
        metadata={"help": "Files (parquet, JSON lines, CSV) or datasets on the Hub, of preference pairs."}
    )
    output_file: str = field(metadata={"help": "Parquet file for the table. It appears when it is complete."})
    repo_id: str | None = field(
        default=None, metadata={"help": "Dataset on the Hub to push the embeddings to, for `--embeddings`."}
    )
    private: bool = field(default=False, metadata={"help": "Whether that dataset is private."})
    split: list[str] = field(
        default_factory=lambda: ["train"], metadata={"help": "Splits of datasets that have several."}
    )
    revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the model."})
    kind: str = field(
        default="response",
        metadata={"help": "What is embedded: response, or prompt_response (prompt, line break, response)."},
    )
    pooling: str = field(default="mean", metadata={"help": "Over the tokens of a text: mean, or its last one."})
    layer: int | None = field(
        default=None,
        metadata={"help": "Number of layers whose output is pooled. Default: all, and the norm behind them."},
    )
    max_length: int = field(default=256, metadata={"help": "Largest number of tokens. The start of a text is kept."})
    normalize: bool = field(default=False, metadata={"help": "Whether embeddings are scaled to length 1."})
    chat_template: bool = field(
        default=False, metadata={"help": "Whether prompt and response are put into the model's chat template."}
    )
    dtype: str = field(
        default="auto",
        metadata={"help": "Precision of the model: float32, bfloat16, float16, or auto, that of its file."},
    )
    batch_size: int = field(default=32, metadata={"help": "Texts at once."})
    device: str = field(default="auto", metadata={"help": "Where to run. Default: on an accelerator if there is one."})
    num_threads: int | None = field(default=None, metadata={"help": "CPU threads."})

    def build(self) -> TextEmbedder:
        return TextEmbedder(
            self.model_name_or_path,
            revision=self.revision,
            pooling=self.pooling,
            max_length=self.max_length,
            normalize=self.normalize,
            layer=self.layer,
            kind=self.kind,
            chat_template=self.chat_template,
            dtype=self.dtype,
        )

    def find_device(self) -> torch.device:
        if self.device != "auto":
            return torch.device(self.device)
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")

    def load(self) -> Iterator[Dataset]:
        """Load one dataset after the other."""
        for name in self.dataset_name:
            for split in self.split:
                yield load_preferences(name, split)


def collect_options(datasets: Iterator[Dataset], kind: str) -> dict[str, dict]:
    """Collect the options of all pairs by the id of their text, longest first: what does not fit fails at once."""
    options, lengths = {}, {}
    for dataset in datasets:
        for option in options_of(dataset, kind):
            text = option_text(option, kind)
            options[text_id(text)], lengths[text_id(text)] = option, len(text)
    return {key: options[key] for key in sorted(options, key=lengths.get, reverse=True)}


def embed_all(embedder: TextEmbedder, options: dict[str, dict], device: torch.device, batch_size: int) -> Iterator:
    """Embed options batch by batch, as parts of the table."""
    keys = list(options)
    with tqdm(total=len(keys), desc="Embedding", unit="texts") as bar:
        for start in range(0, len(keys), batch_size):
            batch = keys[start : start + batch_size]
            embeds = embedder.embed_options([options[key] for key in batch], device, batch_size)  # (B, E)
            embeds = embeds.to("cpu", torch.float16)
            if not embeds.isfinite().all():
                index = int(embeds.isfinite().all(dim=1).int().argmin())
                text = option_text(options[batch[index]], embedder.kind)
                raise ValueError(
                    f"The embedding of {text[:60]!r} is not finite in float16, in which tables are stored. Set "
                    "`normalize=True`, another `layer`, or `dtype=float32`."
                )
            columns = [pa.array(batch), pa.array([embedder.kind] * len(batch)), to_arrow(embeds)]
            yield pa.record_batch(columns, names=["text_id", "kind", "embedding"])
            bar.update(len(batch))


def to_arrow(embeds: torch.Tensor) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(embeds.flatten().numpy()), embeds.shape[1])


def save_table(table: pa.Table, path: Path) -> None:
    """Write to a file beside the one asked for, and move it there when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    pq.write_table(table, part)
    os.replace(part, path)


def main(script_args: ScriptArguments) -> None:
    if script_args.num_threads is not None:
        torch.set_num_threads(script_args.num_threads)
    embedder, device = script_args.build(), script_args.find_device()
    options = collect_options(script_args.load(), script_args.kind)
    table = pa.Table.from_batches(list(embed_all(embedder, options, device, script_args.batch_size)))
    save_table(table, Path(script_args.output_file))
    if script_args.repo_id is not None:
        Dataset(table).push_to_hub(script_args.repo_id, private=script_args.private)
    print(f"{len(options)} texts, embeddings of size {table['embedding'].type.list_size}: {script_args.output_file}")


if __name__ == "__main__":
    main(*TrlParser(ScriptArguments).parse_args_and_config())

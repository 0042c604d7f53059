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

On several GPUs, one process each, which share the texts and one disk:
`accelerate launch --multi_gpu --num_processes 8 examples/embed_preferences.py --model_name_or_path ...`

A run that was killed goes on when its command is given again, on as many processes as there are then: it takes over the
shards in `<output_file>.shards` of the same settings and texts. It does not notice when the model itself has changed, in its
folder or behind the name of a branch: delete the shards then.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import PartialState
from datasets import Dataset
from tqdm.auto import tqdm
from trl import TrlParser

from np_trl import TextEmbedder
from np_trl.data.embeddings import option_text, options_of, text_id
from np_trl.data.loading import load_preferences


@dataclass
class ScriptArguments:
    model_name_or_path: str = field(metadata={"help": "An encoder or a language model, on the Hub or in a folder."})
    dataset_name: list[str] = field(
        metadata={"help": "Files (parquet, JSON lines, CSV) or datasets on the Hub, of preference pairs."}
    )
    output_file: str = field(
        metadata={"help": "Parquet file for the table. It appears when it is complete, and its shards before."}
    )
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
    shard_size: int = field(
        default=4096, metadata={"help": "Texts of a shard: what a process saves at once, and loses when it is killed."}
    )
    device: str = field(default="auto", metadata={"help": "Where to run. Default: on an accelerator if there is one."})
    num_threads: int | None = field(default=None, metadata={"help": "CPU threads of a process."})

    def __post_init__(self):
        if self.shard_size < 1:
            raise ValueError(f"`shard_size={self.shard_size}` must be at least 1 text.")

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


@dataclass
class Shard:
    """Options that one process embeds, and the file that it saves their part of the table to."""

    path: Path
    options: dict[str, dict]
    fingerprint: str

    def is_saved(self) -> bool:
        """Tell whether the file is there, of the same options and settings."""
        try:
            metadata = pq.read_schema(self.path).metadata or {}
        except (FileNotFoundError, pa.ArrowInvalid):  # a machine that lost power leaves files without contents
            return False
        return metadata.get(b"fingerprint") == self.fingerprint.encode()

    def save(self, table: pa.Table) -> None:
        """Write to a file beside the one asked for, and move it there when it is complete."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(f"{self.path.name}.{os.getpid()}.part")  # a killed launcher's processes may live on
        pq.write_table(table.replace_schema_metadata({"fingerprint": self.fingerprint}), part)
        os.replace(part, self.path)


def collect_options(datasets: Iterable[Dataset], kind: str) -> dict[str, dict]:
    """Collect the options of all pairs by the id of their text, longest first: what does not fit fails at once."""
    options, lengths = {}, {}
    for dataset in datasets:
        for option in options_of(dataset, kind):
            text = option_text(option, kind)
            options[text_id(text)], lengths[text_id(text)] = option, len(text)
    return {key: options[key] for key in sorted(options, key=lambda key: (-lengths[key], key))}


def cut_shards(options: dict[str, dict], shard_size: int, embedder: TextEmbedder, folder: Path) -> list[Shard]:
    """Cut options into shards, which are told from those of other options or settings by a hash."""
    shards, keys = [], list(options)
    for start in range(0, len(keys), shard_size):
        part = {key: options[key] for key in keys[start : start + shard_size]}
        content = json.dumps([asdict(embedder), list(part.items())], sort_keys=True, default=str)
        path = folder / f"shard-{len(shards):05d}.parquet"
        shards.append(Shard(path, part, hashlib.sha256(content.encode()).hexdigest()))
    return shards


def embed_shards(
    embedder: TextEmbedder, shards: list[Shard], state: PartialState, device: torch.device, batch_size: int
) -> None:
    """Embed and save this process's share of the shards. The main process shows how far its own is."""
    share = shards[state.process_index :: state.num_processes]  # of about the same lengths in each process
    missing = [shard for shard in share if not shard.is_saved()]
    total, left = (sum(len(shard.options) for shard in part) for part in (share, missing))
    hidden = {} if state.is_main_process else {"disable": True}
    title = f"Embedding on process 1 of {state.num_processes}"
    with tqdm(total=total, initial=total - left, desc=title, unit="texts", **hidden) as bar:
        for shard in missing:
            batches = []
            for batch in embed_batches(embedder, shard.options, device, batch_size):
                batches.append(batch)
                bar.update(len(batch))
            shard.save(pa.Table.from_batches(batches))


def embed_batches(embedder: TextEmbedder, options: dict[str, dict], device: torch.device, batch_size: int) -> Iterator:
    """Embed options batch by batch, as parts of the table."""
    keys = list(options)
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


def to_arrow(embeds: torch.Tensor) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(embeds.flatten().numpy()), embeds.shape[1])


def merge_shards(shards: list[Shard], path: Path) -> None:
    """Join the shards' files, one in memory at a time, move the table into place, and delete them."""
    folder = shards[0].path.parent
    part = folder / f"table.{os.getpid()}.part"
    with pq.ParquetWriter(part, pq.read_schema(shards[0].path).remove_metadata()) as writer:
        for shard in shards:
            writer.write_table(pq.ParquetFile(shard.path).read())
    os.replace(part, path)
    shutil.rmtree(folder)


def main(script_args: ScriptArguments) -> None:
    device, path = script_args.find_device(), Path(script_args.output_file)
    # `cuda` is the GPU that the state makes this process's own; the first process to finish waits long for the last
    state = PartialState(cpu=device.type == "cpu", timeout=timedelta(days=1))
    if script_args.num_threads is not None:
        torch.set_num_threads(script_args.num_threads)
    embedder = script_args.build()
    with state.main_process_first():
        datasets = list(script_args.load())
    options = collect_options(datasets, script_args.kind)
    shards = cut_shards(options, script_args.shard_size, embedder, path.with_name(f"{path.name}.shards"))
    saved = sum(shard.is_saved() for shard in shards)
    if saved and state.is_main_process:
        print(f"{saved} of {len(shards)} shards are taken over from {shards[0].path.parent}")
    state.wait_for_everyone()  # until they are counted
    embed_shards(embedder, shards, state, device, script_args.batch_size)
    state.wait_for_everyone()
    state.destroy_process_group()
    if not state.is_main_process:
        return
    merge_shards(shards, path)
    if script_args.repo_id is not None:
        Dataset.from_parquet(str(path)).push_to_hub(script_args.repo_id, private=script_args.private)
    embed_size = pq.read_schema(path).field("embedding").type.list_size
    print(f"{len(options)} texts, embeddings of size {embed_size}: {script_args.output_file}")


if __name__ == "__main__":
    main(*TrlParser(ScriptArguments).parse_args_and_config())

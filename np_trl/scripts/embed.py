"""The command that embeds texts: `np-trl embed`, `examples/embed_preferences.py`."""

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import xxhash
from accelerate import PartialState
from datasets import Dataset
from tqdm.auto import tqdm

from np_trl.data.embeddings import option_text, options_of, text_id
from np_trl.data.loading import load_preferences
from np_trl.files import whole_file
from np_trl.models import TextEmbedder
from np_trl.scripts.command_parser import CommandParser


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
    max_length: int = field(default=256, metadata={"help": "Largest number of tokens, the special ones included."})
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
        for name, unit in (("batch_size", "text"), ("shard_size", "text"), ("num_threads", "thread")):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}={value}` must be at least 1 {unit}.")
        self.build()
        self.find_device()

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
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        if self.device == "auto":
            return accelerator or torch.device("cpu")
        allowed = {"cpu"} if accelerator is None else {"cpu", accelerator.type}
        allowed |= {f"{accelerator.type}:{index}" for index in range(torch.accelerator.device_count()) if accelerator}
        if self.device not in allowed:
            raise ValueError(f"`device={self.device!r}` is not here. Choose one of {['auto', *sorted(allowed)]}.")
        return torch.device(self.device)

    def find_output(self) -> Path:
        """The file for the table; the program ends here if there can be none."""
        path = Path(self.output_file)
        above = next(folder for folder in path.absolute().parents if folder.exists())
        if path.suffix != ".parquet":
            what = "does not end in `.parquet`, by which `--embeddings` knows a table"
        elif path.is_dir():
            what = "is a folder. Name a file in it"
        elif not above.is_dir():
            what = f"lies below {str(above)!r}, which is a file. Name one in a folder"
        else:
            return path
        sys.exit(f"`output_file={self.output_file!r}` {what}.")

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

    def read(self) -> pa.Table | None:
        """Read the file, if it is there and whole, and of the same options and settings."""
        try:
            table = pq.ParquetFile(self.path).read()
        except (OSError, pa.ArrowException):  # absent, or not written to its end, or damaged since
            return None
        metadata = table.schema.metadata or {}
        expected = {b"fingerprint": self.fingerprint.encode(), b"checksum": checksum(table).encode()}
        return table if expected.items() <= metadata.items() else None

    def save(self, table: pa.Table) -> None:
        """Write the file: when it gets its name it is whole, and on the disk."""
        table = table.replace_schema_metadata({"fingerprint": self.fingerprint, "checksum": checksum(table)})
        while True:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # another run of the same command, that ends now, may take the folder away
            with suppress(FileNotFoundError), whole_file(self.path) as part:
                pq.write_table(table, part)
                return


def checksum(table: pa.Table) -> str:
    """A hash of the content of a shard."""
    names = [table.column(name).to_pylist() for name in ("text_id", "kind")]
    digest = xxhash.xxh3_64(json.dumps(names).encode())
    digest.update(table.column("embedding").combine_chunks().flatten().to_numpy(zero_copy_only=False).tobytes())
    return digest.hexdigest()


def collect_options(datasets: Iterable[Dataset], kind: str) -> dict[str, dict]:
    """Collect the options of all pairs by the id of their text, longest first: what does not fit fails at once."""
    options, lengths = {}, {}
    for dataset in datasets:
        for option in options_of(dataset, kind):
            text = option_text(option, kind)
            options[text_id(text)], lengths[text_id(text)] = option, len(text)
    return {key: options[key] for key in sorted(options, key=lambda key: (-lengths[key], key))}


def cut_shards(options: dict[str, dict], shard_size: int, embedder: TextEmbedder, folder: Path) -> list[Shard]:
    """Cut options into shards, whose names hold a hash of the options and the settings."""
    shards, keys = [], list(options)
    for start in range(0, len(keys), shard_size):
        part = {key: options[key] for key in keys[start : start + shard_size]}
        content = json.dumps([asdict(embedder), list(part.items())], sort_keys=True, default=str)
        path = folder / f"shard-{len(shards):05d}.parquet"
        shards.append(Shard(path, part, hashlib.sha256(content.encode()).hexdigest()))
    return shards


def embed_shards(shards: list[Shard], state: PartialState, embed: Callable) -> None:
    """Embed and save this process's share of the shards. The main process shows how far its own is."""
    share = shards[state.process_index :: state.num_processes]  # of about the same lengths in each process
    missing = [shard for shard in share if shard.read() is None]
    total, left = (sum(len(shard.options) for shard in part) for part in (share, missing))
    hidden = {} if state.is_main_process else {"disable": True}
    title = f"Embedding on process 1 of {state.num_processes}"
    with tqdm(total=total, initial=total - left, desc=title, unit="texts", **hidden) as bar:
        for shard in missing:
            batches = []
            for batch in embed(shard.options):
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


def merge_shards(shards: list[Shard], path: Path, embed: Callable) -> None:
    """Join the shards, one in memory at a time, and delete them when the table is in place."""
    with whole_file(path) as part:
        writer = None
        for shard in shards:
            table = shard.read()
            if table is None:  # another run of the same command was faster, and deleted it
                table = pa.Table.from_batches(embed(shard.options))
            table = table.replace_schema_metadata(None)
            writer = writer or pq.ParquetWriter(part, table.schema)
            writer.write_table(table)
        writer.close()
    delete_shards(shards[0].path.parent)


def delete_shards(folder: Path) -> None:
    """Delete shards and what runs that were killed left of them, and the folder if nothing else is there."""
    for path in folder.glob("shard-*.parquet"):
        with suppress(OSError, pa.ArrowException):  # it may be gone already, or be another's
            if b"fingerprint" in (pq.read_schema(path).metadata or {}):
                path.unlink()
    with suppress(OSError):
        for left_over in folder.glob(".np_trl_*"):
            (left_over / "part").unlink(missing_ok=True)
            left_over.rmdir()
        folder.rmdir()


def main(script_args: ScriptArguments) -> None:
    device, path = script_args.find_device(), script_args.find_output()
    # `cuda` is the GPU that the state makes this process's own; the first process to finish waits long for the last
    state = PartialState(cpu=device.type == "cpu", timeout=timedelta(days=1))
    if script_args.num_threads is not None:
        torch.set_num_threads(script_args.num_threads)
    embedder = script_args.build()
    with state.main_process_first():
        datasets = list(script_args.load())
    options = collect_options(datasets, script_args.kind)
    shards = cut_shards(options, script_args.shard_size, embedder, path.with_name(f"{path.name}.shards"))
    if state.is_main_process:
        saved = sum(shard.read() is not None for shard in shards)
        if saved:
            print(f"{saved} of {len(shards)} shards are taken over from {shards[0].path.parent}")
    state.wait_for_everyone()  # until they are counted
    embed = partial(embed_batches, embedder, device=device, batch_size=script_args.batch_size)
    embed_shards(shards, state, embed)
    state.wait_for_everyone()
    state.destroy_process_group()
    if not state.is_main_process:
        return
    merge_shards(shards, path, embed)
    if script_args.repo_id is not None:
        Dataset.from_parquet(str(path)).push_to_hub(script_args.repo_id, private=script_args.private)
    embed_size = pq.read_schema(path).field("embedding").type.list_size
    print(f"{len(options)} texts, embeddings of size {embed_size}: {script_args.output_file}")


def run() -> None:
    """Parse the command line and run."""
    main(*CommandParser("embed", ScriptArguments).parse_args_and_config())

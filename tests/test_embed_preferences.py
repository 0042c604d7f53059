"""The script that embeds the texts of preference pairs; and the way from UltraFeedback to a reward model."""

import os
import re
import subprocess

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset, load_dataset

from np_trl import NPRewardModel, NPRewardTrainer, TextEmbedder
from np_trl.data import embeddings
from np_trl.data.embeddings import join_embeddings, options_of, text_id
from np_trl.scripts import embed as embed_script

from .distributed.test_distributed import ENVIRONMENT, TORCHRUN
from .distributed.test_distributed import run as run_command
from .test_examples import EXAMPLES, results
from .test_examples import run as run_example
from .test_text_embedder import chat_gemma, tiny_bert
from .test_ultrafeedback import prompts, write_ultrafeedback
from .testing_utils import reward_config, style_rows, tiny_base


SETTINGS = {
    "response": {},
    "prompt_response": {"pooling": "last", "layer": 1, "dtype": "float32"},
    "chat": {"kind": "prompt_response", "chat_template": True, "normalize": True},
}
OTHER_WORK = {
    "normalize": {"normalize": True},
    "pooling": {"pooling": "last"},
    "layer": {"layer": 1},
    "max_length": {"max_length": 20},
    "dtype": {"dtype": "bfloat16"},
    "revision": {"revision": "v2"},
    "kind": {"kind": "prompt_response"},
    "shard_size": {"shard_size": 4},
    "model": {},
    "texts": {},
}
KILLED = """
import os, runpy, signal, sys
from np_trl import TextEmbedder
embed, calls = TextEmbedder.embed_options, []
def embed_three_times(*args):
    calls.append(args)
    if os.environ["RANK"] == "1" and len(calls) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return embed(*args)
TextEmbedder.embed_options = embed_three_times
del sys.argv[0]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def embed(tmp_path):
    """Embed files with settings, and return the table."""

    def run(model: str, *names: str, **settings) -> Dataset:
        file = str(tmp_path / "new" / "embeddings.parquet")
        settings = {"device": "cpu", **settings}
        embed_script.main(embed_script.ScriptArguments(model, list(names), file, **settings))
        return load_dataset("parquet", data_files=file, split="train")

    return run


@pytest.fixture
def embedded(monkeypatch) -> list[dict]:
    """The options that have been embedded in this process; set `embedded.limit` to break off the next batch beyond it."""

    class Embedded(list):
        limit = float("inf")

    options, embed_options = Embedded(), TextEmbedder.embed_options

    def record(self, batch: list[dict], *args) -> torch.Tensor:
        if len(options) + len(batch) > options.limit:
            raise KeyboardInterrupt
        options.extend(batch)
        return embed_options(self, batch, *args)

    monkeypatch.setattr(TextEmbedder, "embed_options", record)
    return options


def command(model: str, file: str, path) -> list[str]:
    """What embeds the file with the model in shards of 3 texts, to the path."""
    script = [EXAMPLES / "embed_preferences.py", "--model_name_or_path", model, "--dataset_name", file]
    return [*script, "--output_file", path, *"--device cpu --max_length 128 --shard_size 3".split()]


def save(dataset: Dataset, path) -> str:
    dataset.to_parquet(path)
    return str(path)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_table_holds_what_the_embedder_of_a_model_says(tmp_path, embed, name):
    settings = {"kind": name if name in embeddings.EMBEDDING_KINDS else "response", "max_length": 100} | SETTINGS[name]
    pairs, path = style_rows(num_users=3, pairs_per_user=4), chat_gemma(tmp_path / "gemma")
    table = embed(path, save(pairs, tmp_path / "pairs.parquet"), batch_size=5, **settings)
    joined = join_embeddings(pairs, table, settings["kind"])
    stored = torch.tensor([[row["chosen_embeds"], row["rejected_embeds"]] for row in joined]).flatten(0, 1)  # (2P, E)
    embedder = TextEmbedder.from_settings({"name_or_path": path, **settings})
    expected = embedder.embed_options(list(options_of(pairs, settings["kind"])))
    torch.testing.assert_close(stored, expected, rtol=1e-3, atol=1e-3)  # float16
    assert set(table["kind"]) == {settings["kind"]}


def test_every_text_is_embedded_once(tmp_path, embed):
    pairs = style_rows(num_users=4, pairs_per_user=4)
    files = [save(pairs, tmp_path / "a.parquet"), save(pairs.select(range(3)), tmp_path / "b.parquet")]
    table = embed(tiny_base(tmp_path / "gemma"), *files, max_length=128, shard_size=5)
    texts = {row[side] for row in pairs for side in ("chosen", "rejected")}
    assert table["text_id"][:] == list(map(text_id, sorted(texts, key=lambda text: (-len(text), text_id(text)))))
    assert table.features["embedding"].feature.dtype == "float16"
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["embeddings.parquet"]


def test_conversations_are_embedded_by_their_text_or_by_the_template(tmp_path, embed):
    pairs, path = style_rows(num_users=1, pairs_per_user=3), chat_gemma(tmp_path / "gemma")
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    said = pairs.from_list(
        [
            {**row, **{column: [{"role": role, "content": row[column]}] for column, role in roles.items()}}
            for row in pairs
        ]
    )
    files = [save(pairs, tmp_path / "texts.parquet"), save(said, tmp_path / "said.parquet")]
    for chat_template in (False, True):
        settings = {"kind": "prompt_response", "max_length": 128, "chat_template": chat_template}
        tables = [embed(path, file, **settings).to_dict() for file in files]
        assert tables[0] == tables[1]
    both = embed(path, *files, kind="prompt_response", max_length=128)
    joined = join_embeddings(said, both, "prompt_response")
    assert joined["chosen_embeds"] == join_embeddings(pairs, both, "prompt_response")["chosen_embeds"]


def test_nothing_is_written_where_a_text_cannot_be_embedded(tmp_path, embed):
    file = save(style_rows(num_users=1, pairs_per_user=2), tmp_path / "pairs.parquet")
    with pytest.raises(ValueError, match="`layer=9` exceeds"):
        embed(tiny_base(tmp_path / "gemma"), file, layer=9, max_length=128)
    model = tiny_bert(tmp_path / "bert")
    weights = TextEmbedder(model)._model
    weights.encoder.layer[-1].output.LayerNorm.bias.data.fill_(1e6)
    weights.save_pretrained(model)
    with pytest.raises(ValueError, match=r"is not finite in float16.*`normalize=True`"):
        embed(model, file)
    assert not (tmp_path / "new").exists()
    assert np.isfinite(embed(model, file, normalize=True)["embedding"]).all()


def test_two_processes_make_the_table_that_one_makes(tmp_path, embed, embedded):
    model, file = tiny_base(tmp_path / "gemma"), save(style_rows(num_users=2), tmp_path / "pairs.parquet")
    expected = embed(model, file, max_length=128, shard_size=3)
    assert len(embedded) == len(expected) > 30
    path = tmp_path / "two" / "embeddings.parquet"
    printed = run_command(*TORCHRUN, *command(model, file, path))
    assert printed == f"{len(expected)} texts, embeddings of size 32: {path}\n"
    assert load_dataset("parquet", data_files=str(path), split="train").to_dict() == expected.to_dict()
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_killed_run_is_taken_up_by_any_number_of_processes(tmp_path, embed, embedded, capsys):
    model, file = tiny_base(tmp_path / "gemma"), save(style_rows(num_users=4), tmp_path / "pairs.parquet")
    (tmp_path / "killed.py").write_text(KILLED)
    launch = [*TORCHRUN, tmp_path / "killed.py", *command(model, file, tmp_path / "new" / "embeddings.parquet")]
    ended = subprocess.run(launch, env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=100)
    assert ended.returncode != 0 and "SIGKILL" in ended.stderr
    shards = tmp_path / "new" / "embeddings.parquet.shards"
    assert os.listdir(tmp_path / "new") == [shards.name]
    assert [(shards / f"shard-{index:05d}.parquet").exists() for index in (1, 3, 5, 7)] == [True, True, True, False]
    saved = len(list(shards.glob("shard-*.parquet")))
    (shards / "shard-00003.parquet").write_bytes(b"")  # as after a loss of power
    (shards / ".np_trl_killed").mkdir()
    (shards / ".np_trl_killed" / "part").write_bytes(b"PAR1")
    table = embed(model, file, max_length=128, shard_size=3)
    assert f"{saved - 1} of {-(-len(table) // 3)} shards are taken over" in capsys.readouterr().out
    assert len(embedded) == len(table) - 3 * (saved - 1) and os.listdir(tmp_path / "new") == ["embeddings.parquet"]
    assert table.to_dict() == embed(model, file, max_length=128, shard_size=3).to_dict()


@pytest.mark.parametrize("name", OTHER_WORK)
def test_shards_of_other_work_are_not_taken_over(tmp_path, embed, embedded, capsys, name):
    model, pairs = tiny_base(tmp_path / "gemma"), style_rows(num_users=1)
    file, settings = save(pairs, tmp_path / "pairs.parquet"), {"max_length": 100, "shard_size": 3}
    embedded.limit = 6
    with pytest.raises(KeyboardInterrupt):
        embed(model, file, **settings)
    assert len(list((tmp_path / "new" / "embeddings.parquet.shards").iterdir())) == 2
    embedded.clear()
    embedded.limit = float("inf")
    if name == "model":
        model = tiny_base(tmp_path / "other", hidden_size=16)
    if name == "texts":
        file = save(style_rows(num_users=1, seed=1), tmp_path / "other.parquet")
    table = embed(model, file, **settings | OTHER_WORK[name])
    assert len(embedded) == len(table) and "taken over" not in capsys.readouterr().out
    assert table.to_dict() == embed(model, file, **settings | OTHER_WORK[name]).to_dict()


def flip(content: bytearray, start: int, size: int) -> None:
    content[start + size // 2] ^= 0x40


def zero(content: bytearray, start: int, size: int) -> None:
    content[start : start + size] = bytes(size)


@pytest.mark.parametrize("damage", [flip, zero])
@pytest.mark.parametrize("column", [0, 2])
def test_a_damaged_shard_is_embedded_again(tmp_path, embed, embedded, damage, column):
    model, file = tiny_base(tmp_path / "gemma"), save(style_rows(num_users=1), tmp_path / "pairs.parquet")
    settings = {"max_length": 100, "shard_size": 3}
    expected = embed(model, file, **settings).to_dict()
    embedded.clear()
    embedded.limit = 6
    with pytest.raises(KeyboardInterrupt):
        embed(model, file, **settings)
    embedded.limit = float("inf")
    shard = tmp_path / "new" / "embeddings.parquet.shards" / "shard-00001.parquet"
    content, page = bytearray(shard.read_bytes()), pq.ParquetFile(shard).metadata.row_group(0).column(column)
    damage(content, page.dictionary_page_offset or page.data_page_offset, page.total_compressed_size)
    shard.write_bytes(content)
    embedded.clear()
    assert embed(model, file, **settings).to_dict() == expected
    assert len(embedded) == len(expected["text_id"]) - 3  # those of the first shard are taken over
    assert os.listdir(tmp_path / "new") == ["embeddings.parquet"]


def test_what_others_put_beside_shards_stays(tmp_path, embed):
    model, file = tiny_base(tmp_path / "gemma"), save(style_rows(num_users=1), tmp_path / "pairs.parquet")
    shards = tmp_path / "new" / "embeddings.parquet.shards"
    shards.mkdir(parents=True)
    mine = {"thesis.txt": b"mine", "shard-mine.parquet": b"mine", "shard-00000.parquet": b"mine"}
    for name, content in mine.items():
        (shards / name).write_bytes(content)
    embed(model, file, max_length=100)
    del mine["shard-00000.parquet"]  # no name that anybody else would choose
    assert {path.name: path.read_bytes() for path in shards.iterdir()} == mine


def test_two_runs_at_once_make_the_table_that_one_makes(tmp_path, embed, embedded, monkeypatch):
    """The second one begins when the first has saved its shards, and ends before the first joins them."""
    model, file = tiny_base(tmp_path / "gemma"), save(style_rows(num_users=1), tmp_path / "pairs.parquet")
    settings = {"max_length": 100, "shard_size": 3}
    expected = embed(model, file, **settings).to_dict()
    path, merge = str(tmp_path / "new" / "embeddings.parquet"), embed_script.merge_shards

    def merge_late(*args):
        monkeypatch.setattr(embed_script, "merge_shards", merge)  # the second run is not late
        assert embed(model, file, **settings).to_dict() == expected
        assert os.listdir(tmp_path / "new") == ["embeddings.parquet"]
        merge(*args)

    monkeypatch.setattr(embed_script, "merge_shards", merge_late)
    (tmp_path / "new" / "embeddings.parquet").unlink()
    embed_script.main(embed_script.ScriptArguments(model, [file], path, device="cpu", **settings))
    assert load_dataset("parquet", data_files=path, split="train").to_dict() == expected
    assert os.listdir(tmp_path / "new") == ["embeddings.parquet"]


@pytest.mark.parametrize("name", ["folder.parquet", "pairs.parquet/new/table.parquet", "table.txt", "table"])
def test_a_table_is_a_parquet_file(tmp_path, name):
    (tmp_path / "folder.parquet").mkdir()
    file = save(style_rows(num_users=1), tmp_path / "pairs.parquet")
    with pytest.raises(SystemExit, match=r"is a folder|lies below|does not end in `.parquet`"):
        embed_script.main(embed_script.ScriptArguments("no/such-model", [file], str(tmp_path / name), device="cpu"))
    assert sorted(os.listdir(tmp_path)) == ["folder.parquet", "pairs.parquet"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shard_size": 0}, "`shard_size=0` must be at least 1"),
        ({"batch_size": 0}, "`batch_size=0` must be at least 1"),
        ({"batch_size": -1}, "`batch_size=-1` must be at least 1"),
        ({"num_threads": 0}, "`num_threads=0` must be at least 1"),
        ({"max_length": 0}, "`max_length=0` must be at least 1"),
        ({"layer": -1}, "`layer=-1` must be at least 0"),
        ({"kind": "prompt"}, "`kind='prompt'` is unknown"),
        ({"device": "evil"}, "`device='evil'` is not here. Choose one of"),
        ({"device": "meta"}, "`device='meta'` is not here"),
    ],
)
def test_options_are_checked_before_anything_is_loaded(embed, settings, message):
    with pytest.raises(ValueError, match=message):
        embed("no/such-model", "no/such-file.parquet", **settings)


def test_a_row_without_text_is_named(tmp_path, embed):
    rows = style_rows(num_users=1, pairs_per_user=3).to_list()
    rows[2]["rejected"] = " "
    file = save(Dataset.from_list(rows), tmp_path / "pairs.parquet")
    with pytest.raises(ValueError, match="`rejected` of row 2 of the dataset is empty"):
        embed("no/such-model", file)


def test_datasets_without_the_texts_are_refused(tmp_path, embed):
    file = save(style_rows(num_users=1, pairs_per_user=2).remove_columns("prompt"), tmp_path / "pairs.parquet")
    with pytest.raises(ValueError, match=r"The dataset has no \['prompt'\] column"):
        embed("no/such-model", file, kind="prompt_response")


def test_from_ultrafeedback_to_a_reward_model(tmp_path):
    """Prepare, embed, train with the embeddings, all by their commands; the model scores texts by its embedder."""
    write_ultrafeedback(tmp_path, prompts(20, 8, 8))
    tiny_base(tmp_path / "gemma")
    prepare = "--dataset_name ultrafeedback.jsonl --num_train_users 4 --pairs_per_user 30 --num_eval_users 3"
    run_example(
        "prepare_ultrafeedback.py", *prepare.split(), *"--num_eval_pairs 20 --output_dir hh".split(), cwd=tmp_path
    )
    files = [f"hh/{split}.parquet" for split in ("train", "validation", "test")]
    embed = (
        "--model_name_or_path gemma --pooling last --kind prompt_response --max_length 64 --output_file hh/e.parquet"
    )
    printed = run_example("embed_preferences.py", "--dataset_name", *files, *embed.split(), cwd=tmp_path)
    assert re.search(r"144 texts, embeddings of size 32: hh/e.parquet", printed)
    train = (
        "--dataset_name hh/train.parquet --eval_dataset_name hh/test.parquet --embeddings hh/e.parquet "
        "--embedding_kind prompt_response --embedder_name_or_path gemma --embedder_pooling last --embedder_max_length 64 "
        "--max_steps 3 --num_targets 8 --max_context 5 --hidden_size 16 --latent_size 16 --memory_size 8 "
        "--eval_num_contexts 0 5 --eval_group_column group --report_to none --output_dir reward --num_threads 1"
    )
    run_example("np_reward.py", *train.split(), cwd=tmp_path)
    test = load_dataset("parquet", data_files=str(tmp_path / "hh" / "test.parquet"), split="train")
    table = load_dataset("parquet", data_files=str(tmp_path / "hh" / "e.parquet"), split="train")
    joined, evaluation = join_embeddings(test, table, "prompt_response"), {"eval_num_contexts": [0, 5], "seed": 42}
    args = reward_config(tmp_path / "again", num_targets=8, max_context=5, **evaluation)
    trainer = NPRewardTrainer(str(tmp_path / "reward"), args=args, train_dataset=joined, eval_dataset=joined)
    evaluated, metrics = trainer.evaluate(), results(tmp_path / "reward")
    for key in ("eval_nc0_nll", "eval_nc5_nll", "eval_nc5_accuracy", "eval_nc5_shuffled_accuracy"):
        assert metrics[key] == pytest.approx(evaluated[key], abs=1e-5), key
    assert abs(metrics["eval_nc5_nll"] - metrics["eval_nc0_nll"]) > 1e-3
    model = NPRewardModel.from_pretrained(tmp_path / "reward")
    model.config.embedder["name_or_path"] = str(tmp_path / "gemma")
    test = test.select(range(4))
    stored = torch.tensor(join_embeddings(test, table, "prompt_response")["chosen_embeds"][:])
    options = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in test]
    torch.testing.assert_close(model.text_embedder.embed_options(options), stored, rtol=1e-3, atol=1e-3)

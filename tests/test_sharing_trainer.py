"""What is saved and shared of a run: what belongs to the model, whole, and nothing else."""

import json
import os
import resource
import shutil
import signal
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

from np_trl import NPDPOTrainer, load_policy
from np_trl.trainer.sharing_trainer import whole_model
from np_trl.trainer.uploads import files_to_share

from .testing_utils import dpo_config, style_rows, tiny_base, tiny_tokenizer


PAIRS = [{"prompt": "How do I fix the bike?", "chosen": " take it slow", "rejected": " ask a buddy"}]
CODE = {"auto_map": {"AutoTokenizer": ["evil/repo--tok.T", None]}}
MODEL = {
    "README.md", "config.json", "generation_config.json", "model.safetensors", "modeling_film_gemma.py",
    "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "additional_chat_templates/rag.jinja",
    "model-00001-of-00002.safetensors", "model.safetensors.index.json",
}  # fmt: skip
ADAPTER = {
    "adapter_config.json",
    "adapter_model.safetensors",
    "ref/adapter_config.json",
    "ref/adapter_model.safetensors",
}
STATE = {
    "optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth", "rng_state_3.pth", "trainer_state.json", "latest",
    "global_step7/mp_rank_00_model_states.pt", "pytorch_model_fsdp_0/__0_0.distcp", "optimizer_0/.metadata",
}  # fmt: skip
STRANGERS = {
    "ada.safetensors", "model-ada.safetensors", "users/ada.safetensors", ".env", "users.parquet", "log.txt", "train.py",
    "training_args.bin", "pytorch_model.bin", "state.pkl", "runs/events.out.tfevents.1", ".git/config", "m.py",
    "_reference/train/data-00000-of-00001.arrow", "user-index-0/users.arrow", "checkpoint-1/model.safetensors",
    "merged/model.safetensors", "bob/adapter_model.safetensors", "custom_generate/generate.py", "eval_results.json",
    "checkpoint-1/optimizer.pt", "README.md.bak", "config.json.old", ".np_trl_x/part", "rng_state.pth.txt",
}  # fmt: skip


def build(tmp_path, lora: bool = True, tokenizer=None, **kwargs) -> NPDPOTrainer:
    return NPDPOTrainer(
        tiny_base(tmp_path / "base"),
        args=dpo_config(tmp_path / "out", **kwargs),
        train_dataset=style_rows(num_users=4),
        processing_class=tokenizer or tiny_tokenizer(),
        peft_config=LoraConfig(r=4, target_modules=["q_proj"], layers_to_transform=[1, 2]) if lora else None,
    )


def logits(model) -> torch.Tensor:
    tokens = torch.tensor([tiny_tokenizer()("How do I fix the lamp?")["input_ids"]])
    with torch.no_grad():
        latents = model.infer_user(PAIRS, tiny_tokenizer())
        return model(tokens, latents=latents).logits


@pytest.mark.parametrize(
    ("tokenizer", "adapters", "with_state", "expected"),
    [
        (tiny_tokenizer(), None, False, MODEL),
        (None, None, False, {name for name in MODEL if "token" not in name and "chat" not in name}),
        (
            tiny_tokenizer(),
            ["default", "ref"],
            False,
            ADAPTER | {name for name in MODEL if "model" not in name and name != "config.json"},
        ),
        (tiny_tokenizer(), None, True, MODEL | STATE),
    ],
    ids=["policy", "reward", "adapter", "checkpoint"],
)
def test_what_belongs_to_a_model_is_shared_and_nothing_else(tmp_path, tokenizer, adapters, with_state, expected):
    for name in MODEL | ADAPTER | STATE | STRANGERS:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    assert set(files_to_share(tmp_path, tokenizer, adapters, with_state)) == expected


@pytest.mark.parametrize("lora", [True, False])
def test_a_tokenizer_is_saved_without_anothers_code(tmp_path, lora):
    tiny_tokenizer().save_pretrained(tmp_path / "theirs")
    config = json.loads((tmp_path / "theirs" / "tokenizer_config.json").read_text())
    (tmp_path / "theirs" / "tokenizer_config.json").write_text(json.dumps(config | CODE))
    theirs = AutoTokenizer.from_pretrained(tmp_path / "theirs", trust_remote_code=False)
    assert theirs.init_kwargs["auto_map"] == CODE["auto_map"]
    theirs._auto_class = "AutoTokenizer"  # transformers would copy the file of its class, over one of ours by its name
    trainer = build(tmp_path, lora, theirs, max_steps=1, save_strategy="steps", save_steps=1)
    trainer.train()
    trainer.save_model()
    trainer.save_merged(tmp_path / "merged")
    for folder in ("out", "out/checkpoint-1", "merged"):
        saved = json.loads((tmp_path / folder / "tokenizer_config.json").read_text())
        assert not list((tmp_path / folder).glob("tokenization*.py"))
        assert "auto_map" not in saved and saved["tokenizer_class"] == config["tokenizer_class"]
        ids = AutoTokenizer.from_pretrained(tmp_path / folder)("How do I fix the lamp?")["input_ids"]
        assert ids == theirs("How do I fix the lamp?")["input_ids"]
    assert trainer.processing_class is theirs and theirs.init_kwargs["auto_map"] == CODE["auto_map"]


@contextmanager
def full_disk(num_bytes: int):
    """A disk that takes no file of more bytes."""
    handler, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_merged_policy_appears_whole_and_its_adapter_stays(tmp_path):
    trainer = build(tmp_path)
    trainer.train()
    expected = logits(trainer.model.eval())
    with full_disk(20_000), pytest.raises(Exception, match=r"File too large|Error|error"):
        trainer.save_merged(tmp_path / "merged")
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "merged"):
        with pytest.raises(OSError, match=r"Name another folder|exists|Not a directory"):
            trainer.save_merged(path)
    with pytest.raises(ValueError, match="holds a model of type 'gemma', which would be replaced"):
        trainer.save_merged(tmp_path / "base")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "file", "out"]
    assert torch.equal(logits(trainer.model), expected)
    trainer.save_model()
    torch.testing.assert_close(logits(load_policy(str(tmp_path / "out")).eval()), expected, rtol=0, atol=1e-6)
    trainer.save_merged(tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(logits(merged), expected, rtol=0, atol=1e-5)
    assert torch.equal(logits(trainer.model), expected) and (tmp_path / "file").read_text() == "mine"


def test_a_policy_is_saved_over_an_earlier_one_and_beside_other_files(tmp_path):
    trainer = build(tmp_path, lora=False)
    trainer.save_model()
    folder = tmp_path / "out"
    weights = (folder / "model.safetensors").read_bytes()
    shutil.copy(folder / "model.safetensors", folder / "ada.safetensors")  # a profile, say
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"of an earlier save")
    trainer.train()
    with full_disk(20_000), pytest.raises(Exception, match=r"File too large|Error|error"):
        trainer.save_merged(folder)
    assert (folder / "model.safetensors").read_bytes() == weights
    trainer.save_merged(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    expected = trainer.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert (folder / "ada.safetensors").read_bytes() == weights
    assert not list(folder.glob("model-*")) and not list(folder.glob(".np_trl_*"))


def test_a_save_that_is_stopped_leaves_no_weights_of_two_models(tmp_path, monkeypatch):
    """An earlier save in one file of weights, a new one in two, which a process moves into place until it is killed."""
    torch.manual_seed(0)
    models = [AutoModelForCausalLM.from_pretrained(tiny_base(tmp_path / "base")) for _ in range(2)]
    torch.nn.init.normal_(models[1].model.embed_tokens.weight)
    expected = [model.model.embed_tokens.weight.clone() for model in models]
    folder, replace, found = tmp_path / "out", Path.replace, set()
    for moves in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        models[0].save_pretrained(folder)
        left = iter(range(moves))

        def move_or_stop(*args, left=left):
            if next(left, None) is None:
                raise KeyboardInterrupt
            replace(*args)

        monkeypatch.setattr(Path, "replace", move_or_stop)
        with suppress(KeyboardInterrupt), whole_model(folder, "gemma") as part:
            models[1].save_pretrained(part, max_shard_size="20KB")
        monkeypatch.undo()
        try:
            weight = AutoModelForCausalLM.from_pretrained(folder).model.embed_tokens.weight
        except (OSError, ValueError):
            found.add("nothing")
        else:
            found.add([torch.equal(weight, one) for one in expected].index(True))
    assert found == {"nothing", 1}


def test_a_run_saves_its_metrics_where_those_of_another_are_torn(tmp_path):
    trainer = build(tmp_path)
    (tmp_path / "out").mkdir(exist_ok=True)
    (tmp_path / "out" / "all_results.json").write_text('{"eval_nll": 0.')
    trainer.save_metrics("eval", {"eval_nll": 0.5})
    assert json.loads((tmp_path / "out" / "all_results.json").read_text()) == {"eval_nll": 0.5}


def test_a_chat_template_of_an_earlier_save_is_not_taken_for_the_tokenizers(tmp_path):
    chats = tiny_tokenizer()
    chats.chat_template = {"default": "{{ messages }}", "rag": "{{ documents }}"}
    build(tmp_path, tokenizer=chats).save_model()
    folder = tmp_path / "out"
    assert AutoTokenizer.from_pretrained(folder).chat_template == chats.chat_template
    chats.chat_template = "{{ messages[0] }}"
    build(tmp_path, tokenizer=chats).save_model()
    assert AutoTokenizer.from_pretrained(folder).chat_template == chats.chat_template
    build(tmp_path).save_model()
    assert AutoTokenizer.from_pretrained(folder).chat_template is None
    assert (folder / "chat_template.jinja.old").read_text() == chats.chat_template


def test_no_link_out_of_the_folder_is_shared(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "secret").write_text("secret")
    for name in ("config.json", "real.json"):
        (tmp_path / "model" / name).write_text("{}")
    os.symlink(tmp_path / "secret", tmp_path / "model" / "README.md")
    os.symlink(tmp_path / "model" / "real.json", tmp_path / "model" / "generation_config.json")
    os.symlink(tmp_path / "model", tmp_path / "link")
    for folder in ("model", "link"):
        assert files_to_share(tmp_path / folder) == ["config.json", "generation_config.json"]

"""The private names of libraries that np_trl touches: all of them are listed, with a reason, and are where they were."""

import ast
import inspect
import re

import datasets
import peft
import pytest
import torch
import transformers
import trl
from peft.utils.other import ModulesToSaveWrapper
from trl.trainer.base_trainer import _BaseTrainer

from np_trl import NPDPOTrainer, NPRewardTrainer
from np_trl.trainer import trl_loss
from np_trl.trainer.contextual_trainer import ContextualTrainerMixin

from .testing_utils import ROOT


OWNERS = {
    "DPOTrainer": trl.DPOTrainer,
    "RewardTrainer": trl.RewardTrainer,
    "_BaseTrainer": _BaseTrainer,
    "Trainer": transformers.Trainer,
    "PreTrainedModel": transformers.PreTrainedModel,
    "PreTrainedConfig": transformers.PreTrainedConfig,
    "GenerationMixin": transformers.GenerationMixin,
    "PeftModel": peft.PeftModel,
    "ModulesToSaveWrapper": ModulesToSaveWrapper,
    "Dataset": datasets.Dataset,
    "MultiheadAttention": torch.nn.MultiheadAttention,
    "utils": trl.trainer.utils,
}
LISTED = re.findall(r"^    (\w+)\.(_\w+) +(\w.*)$", trl_loss.__doc__, re.M)
# attributes of instances, by how they are set
SET = r"self\.{name}\b"
# names of ours that a library has in another meaning, on objects that are none of ours
OURS = {"_embed", "_tokenize", "_auto_map", "_ids", "_info", "_sample", "_split", "_tokenizer"}


def has(owner: type, name: str) -> bool:
    if hasattr(owner, name):
        return True
    if inspect.ismodule(owner):
        return False
    return re.search(SET.format(name=name), inspect.getsource(inspect.getmodule(owner))) is not None


@pytest.mark.parametrize("owner, name, why", LISTED, ids=[f"{owner}.{name}" for owner, name, _ in LISTED])
def test_a_private_name_is_where_it_was(owner, name, why):
    assert has(OWNERS[owner], name), f"{owner}.{name} has moved. It was used to: {why}"


# what np_trl overrides or calls, with the arguments that it relies on
SIGNATURES = {
    "DPOTrainer._prepare_dataset": ["self", "dataset", "processing_class", "args", "dataset_name"],
    "RewardTrainer._prepare_dataset": ["self", "dataset", "processing_class", "args", "dataset_name"],
    "DPOTrainer._precompute_ref_logps": ["self", "dataset", "name", "batch_size"],
    "DPOTrainer.compute_ref_log_probs": ["self", "model", "inputs"],
    "DPOTrainer.compute_loss": ["self", "model", "inputs", "return_outputs", "num_items_in_batch"],
    "RewardTrainer.compute_loss": ["self", "model", "inputs", "return_outputs", "num_items_in_batch"],
    "Trainer._get_dataloader": [
        "self", "dataset", "description", "batch_size", "sampler_fn", "is_training", "dataloader_key"
    ],
    "Trainer._get_train_sampler": ["self", "train_dataset"],
    "Trainer._save_checkpoint": ["self", "model", "trial"],
    "Trainer._save": ["self", "output_dir", "state_dict"],
    "Trainer._push_from_checkpoint": ["self", "checkpoint_folder"],
    "Trainer._load_best_model": ["self"],
    "Trainer._init_training_state": [
        "self", "max_steps", "num_update_steps_per_epoch", "num_train_epochs", "resume_from_checkpoint", "trial"
    ],
    "Trainer.evaluation_loop": [
        "self", "dataloader", "description", "prediction_loss_only", "ignore_keys", "metric_key_prefix"
    ],
    "Trainer.prediction_step": ["self", "model", "inputs", "prediction_loss_only", "ignore_keys"],
}  # fmt: skip


@pytest.mark.parametrize("name", SIGNATURES)
def test_what_is_overridden_takes_what_it_took(name):
    owner, method = name.split(".")
    assert list(inspect.signature(getattr(OWNERS[owner], method)).parameters) == SIGNATURES[name]


def private_names(code: str) -> set[str]:
    """Names that begin with one underscore, of attributes and of what classes define."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
    return {name for name in found if re.fullmatch(r"_[a-z]\w*", name)}


def test_every_private_name_of_a_library_is_listed():
    code = [path.read_text() for path in (ROOT / "np_trl").rglob("*.py")]
    used = set().union(*map(private_names, code)) - OURS
    foreign = {name for name in used if any(has(owner, name) for owner in OWNERS.values())}
    assert foreign == {name for _, name, _ in LISTED}
    assert private_names("x._fingerprint = model.__class__\ndef _save(): pass") == {"_fingerprint", "_save"}


@pytest.mark.parametrize("trainer, base", [(NPDPOTrainer, trl.DPOTrainer), (NPRewardTrainer, trl.RewardTrainer)])
def test_methods_are_resolved_in_the_order_that_is_documented(trainer, base):
    parents = {parent.__name__: vars(parent) for parent in trainer.__mro__[1 : trainer.__mro__.index(base)]}
    table = re.findall(
        r"^ +(\w+Mixin)(?: or (\w+Mixin))?.*?  +(\w+(?:, \w+)*)  ", ContextualTrainerMixin.__doc__, re.M
    )
    rows = {name: methods.split(", ") for *names, methods in table for name in names if name in parents}
    assert list(rows) == [name for name in parents if name != "PairLossMixin"]  # of which those of the losses are made
    assert set(rows["ContextualTrainerMixin"]) <= parents["ContextualTrainerMixin"].keys()
    for name, methods in rows.items():
        present = [method for method in methods if method in parents[name]]
        assert present == methods or name == "RewardLossMixin" and present == ["compute_loss"], name


def test_both_trainers_hook_at_the_loss_that_trl_documents():
    for mixin in (trl_loss.PolicyLossMixin, trl_loss.RewardLossMixin):
        assert "compute_loss" in vars(mixin) and "_compute_loss" not in vars(mixin)

"""Model cards: what they say is true, their metadata are valid, and their programs run."""

import ast
import json
import re
import shutil
from functools import partial

import pytest
from huggingface_hub import ModelCard
from peft import LoraConfig

from np_trl import NPDPOTrainer, NPRewardTrainer
from np_trl.trainer.model_card import AccuracyCurve, accuracy_curves, create_card, find_license

from .hub import metadata_errors
from .test_text_context import as_conversation, chat_tokenizer
from .testing_utils import (
    ROOT,
    STYLE_GEMMA,
    dpo_config,
    embedded_rows,
    reward_config,
    style_rows,
    tiny_base,
    tiny_reward_model,
    tiny_tokenizer,
    with_embeddings,
)


def policy_trainer(tmp_path, change=lambda rows: rows, lora: bool = True, tokenizer=None, **kwargs) -> NPDPOTrainer:
    return NPDPOTrainer(
        tiny_base(tmp_path / "base"),
        args=dpo_config(tmp_path / "out", **kwargs),
        train_dataset=change(style_rows()),
        eval_dataset=change(style_rows(num_users=8, seed=1)),
        processing_class=tokenizer or tiny_tokenizer(),
        peft_config=LoraConfig(r=4, target_modules=["q_proj"], layers_to_transform=[1, 2]) if lora else None,
    )


def reward_trainer(tmp_path, eval_dataset=None, **kwargs) -> NPRewardTrainer:
    model = tiny_reward_model(**kwargs)
    size = model.config.embed_size
    return NPRewardTrainer(
        model,
        args=reward_config(tmp_path / "out"),
        train_dataset=embedded_rows(embed_size=size),
        eval_dataset=embedded_rows(embed_size=size, seed=1) if eval_dataset is None else eval_dataset,
    )


def program(card: ModelCard) -> str:
    return re.search(r"```python\n(.*?)```", card.text, re.S).group(1)


def test_curves_are_read_from_evaluation_metrics():
    metrics = {
        "eval_nc0_accuracy": 0.5, "eval_nc10_accuracy": 0.9, "eval_nc10_accuracy_se": 0.01, "eval_loss": 1.0,
        "eval_nc10_shuffled_accuracy": 0.49, "eval_nc10_bayes_accuracy": 1.0, "eval_new_users_nc3_accuracy": 0.7,
    }  # fmt: skip
    (curve,) = accuracy_curves(metrics)
    assert (curve.name, curve.num_contexts) == (None, [0, 10])
    assert curve.rows == {
        "accuracy": [0.5, 0.9],
        "standard error": [None, 0.01],
        "control: other users' choices": [None, 0.49],
    }
    (other,) = accuracy_curves(metrics, ["new_users"])  # without names, it may be another model's
    assert (other.name, other.num_contexts, other.rows) == ("new_users", [3], {"accuracy": [0.7]})


def test_a_card_shows_the_last_evaluation_of_its_trainer(tmp_path):
    trainer = policy_trainer(tmp_path)
    trainer.create_model_card(dataset_name="style_population")
    path = tmp_path / "out" / "README.md"
    assert "It has not been evaluated." in path.read_text()
    metrics = trainer.evaluate()
    trainer.save_metrics("eval", {**metrics, "eval_nc2_bayes_accuracy": 1.0})
    card = ModelCard.load(path)
    results = json.loads((tmp_path / "out" / "eval_results.json").read_text())
    row = next(line for line in card.text.splitlines() if line.startswith("| accuracy |"))
    assert row == f"| accuracy | {results['eval_nc0_accuracy']:.3f} | {results['eval_nc2_accuracy']:.3f} |"
    assert f"| standard error | {results['eval_nc0_accuracy_se']:.3f} |" in card.text
    assert f"| control: other users' choices |  | {results['eval_nc2_shuffled_accuracy']:.3f} |" in card.text
    assert "8 users, none of whom has the id of a training user" in card.text
    assert "`style_population`, 192 pairs of 16 users" in card.text
    index = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert index == {
        "Accuracy on unseen pairs, 0 choices": round(results["eval_nc0_accuracy"], 4),
        "Accuracy on unseen pairs, 2 choices": round(results["eval_nc2_accuracy"], 4),
        "Accuracy on unseen pairs, other users' choices, 2 choices": round(results["eval_nc2_shuffled_accuracy"], 4),
    }
    # the results in the folder are of a run that another one knows nothing of
    again = policy_trainer(tmp_path)
    again.save_model()
    assert "It has not been evaluated." in path.read_text() and (tmp_path / "out" / "eval_results.json").exists()


def test_a_resumed_run_shows_its_own_last_evaluation(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    trainer = policy_trainer(tmp_path, **settings)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "eval_nc0_accuracy" in entry]
    again = policy_trainer(tmp_path, **settings)
    again.train(resume_from_checkpoint=True)
    again.save_model()
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert len(logged) == 2 and f"| accuracy | {logged[1]['eval_nc0_accuracy']:.3f} |" in card.text


def test_several_evaluation_sets_have_a_table_each(tmp_path):
    sets = {"friends": embedded_rows(seed=1), "strangers": embedded_rows(num_users=5, seed=2)}
    trainer = reward_trainer(tmp_path, eval_dataset=sets)
    metrics = trainer.evaluate()
    trainer.save_model()
    text = (tmp_path / "out" / "README.md").read_text()
    for name in sets:
        accuracy = metrics[f"eval_{name}_nc0_accuracy"]
        assert re.search(
            rf"Evaluation set `{name}`:\n\n\| choices given \| 0 \| 2 \|\n.*\n\| accuracy \| {accuracy:.3f}", text
        )


def test_there_is_a_card_in_every_checkpoint(tmp_path):
    trainer = policy_trainer(
        tmp_path, max_steps=2, save_strategy="steps", save_steps=1, eval_strategy="steps", eval_steps=1
    )
    trainer.train()
    for step in (1, 2):
        card = ModelCard.load(tmp_path / "out" / f"checkpoint-{step}" / "README.md")
        assert f"| `updates` | {step} |" in card.text and card.data.eval_results


def test_a_name_once_given_stays(tmp_path):
    trainer = policy_trainer(tmp_path, max_steps=1, save_strategy="steps", save_steps=1)
    trainer.create_model_card(model_name="Ada's own", dataset_name="choices", tags="diary")
    trainer.train()  # TRL names the card by the folder at a checkpoint
    trainer.create_model_card(tags=["letters"])
    trainer.save_model()
    for folder in ("out", "out/checkpoint-1"):
        card = ModelCard.load(tmp_path / folder / "README.md")
        assert "\n# Ada's own\n" in card.text and "- Data: `choices`, " in card.text and "diary" in card.data.tags
    assert {"diary", "letters", "np-dpo"} <= set(ModelCard.load(tmp_path / "out" / "README.md").data.tags)
    trainer.create_model_card(model_name="another")
    assert "\n# another\n" in (tmp_path / "out" / "README.md").read_text()


def test_metadata_are_valid_and_name_no_folder(tmp_path):
    trainer = policy_trainer(tmp_path)
    trainer.create_model_card(dataset_name=str(tmp_path / "base"), tags="personalization")
    trainer.evaluate()
    trainer.save_model()
    trainer.save_merged(str(tmp_path / "out" / "merged"))
    reward = reward_trainer(tmp_path / "reward")
    reward.evaluate()
    reward.save_model()
    for folder, library in (("out", "np_trl"), ("out/merged", "transformers"), ("reward/out", "transformers")):
        card = ModelCard.load(tmp_path / folder / "README.md")
        metadata = card.data.to_dict()
        assert metadata_errors(metadata) == [] and metadata["library_name"] == library
        assert str(tmp_path) not in card.data.to_yaml()
        assert {"trl", "generated_from_trainer"} <= set(metadata["tags"]) and metadata["model-index"]
        assert "huggingface.co/papers/2412.13998" in card.text and card.text.count("```bibtex") == 2
    assert metadata_errors({"base_model": "/home/me/gemma", "license": "mine"}) == [
        "base_model: '/home/me/gemma' is not allowed",
        "license: 'mine' is not allowed",
    ]


def test_the_base_models_licence_is_named(tmp_path):
    assert find_license(STYLE_GEMMA) == {"license": "apache-2.0"} and find_license(tiny_base(tmp_path / "base")) == {}
    trainer = NPDPOTrainer(
        STYLE_GEMMA, args=dpo_config(tmp_path / "out"), train_dataset=style_rows(), processing_class=tiny_tokenizer()
    )
    trainer.save_model()
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.license == "apache-2.0" and "Its licence applies to this model too: apache-2.0" in card.text


@pytest.mark.parametrize(
    "card",
    [
        "---\nlicense: [mit\n---\n",
        "---\n- license\n---\n",
        "no metadata",
        None,
        "---\n1: a\nself: b\nkwargs: c\n---\n",
    ],
    ids=["broken", "list", "none", "absent", "keys"],
)
def test_a_base_whose_licence_cannot_be_read_stops_no_save(tmp_path, card):
    trainer = policy_trainer(tmp_path)
    if card is None:
        shutil.rmtree(tmp_path / "base")
    else:
        (tmp_path / "base" / "README.md").write_text(card)
    trainer.save_model()
    assert "could not be looked up" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ("license: mit\n1: a\nnull: b\nself: c\nkwargs: d", {"license": "mit"}),
        ("a: " + "[" * 3000 + "]" * 3000 + "\nlicense: mit", {"license": "mit"}),
        (
            "license: other\nlicense_name: 'x # Owned <script>'\nlicense_link: 'javascript:alert(1)'",
            {"license": "other"},
        ),
        ('license: "mit\\n# Owned"\nlicense_name: "a`b"', {}),
        ("license: mit\x00\nlicense_name: [a]\nlicense_link: 5", {}),
        ("license: !!python/object/apply:os.system ['id']", {}),
        ("license: 2020-01-01", {}),
        ("model-index: [x]\nlicense: gpl-3.0 # since 2020", {"license": "gpl-3.0"}),
        ("nested:\n  license: mit", {}),
        ("\n" * 2_000_000 + "license: mit", {}),
    ],
    ids=range(10),
)
def test_of_a_bases_card_plain_lines_are_taken_and_the_rest_is_not_read(tmp_path, fields, expected):
    (tmp_path / "README.md").write_text(f"---\n{fields}\n---\n# base\nlicense: bsd\n")
    assert find_license(str(tmp_path)) == expected


EVIL = "x`\n---\nlicense: mit\n---\n# Owned {{ 7*7 }} <script>alert(1)</script> | *a* | [free](http://evil) \u202e\ud800 \\"
PLACES = {
    "model_name": {"model_name": EVIL},
    "tags": {"tags": [EVIL, ""]},
    "source": {"source": EVIL},
    "dataset": {"dataset": EVIL, "dataset_name": EVIL},
    "settings": {"settings": {EVIL: EVIL}},
    "curves": {"curves": [AccuracyCurve(EVIL, [0], {"accuracy": [0.5]})], "eval_users": EVIL},
    "base": {"base": EVIL, "base_revision": EVIL, "moved_base": EVIL, "kind": "adapter"},
    "revision": {"base": "you/base", "base_revision": EVIL},
    "embedder": {
        "kind": "reward",
        "embedder": {"name_or_path": EVIL, "revision": EVIL},
        "base": EVIL,
        "conditional": True,
    },
    "method": {"method": EVIL, "paper_title": EVIL, "paper_id": EVIL},
}


@pytest.mark.parametrize("place", PLACES)
def test_a_text_from_outside_is_nothing_but_text(tmp_path, place):
    facts = {
        "source": "you/x",
        "method": "NP-DPO",
        "paper_title": "t",
        "paper_id": "1",
        "citation": "c",
        "dataset": "d",
    }
    facts |= {"context_source": "trunk", "film_site": "block", "conversational": False, "embedder": None, "curves": []}
    facts |= {"kind": "merged", "model_name": "m", "settings": {}, "base": None}
    plain, card = create_card(**facts), create_card(**{**facts, **PLACES[place]})
    card.save(tmp_path / "README.md")
    again = ModelCard.load(tmp_path / "README.md")
    assert again.data.to_dict().get("license") is None and again.data.base_model in (None, "you/base")
    headings = re.compile(r"^#+ (?!x).*", re.M)
    assert [line for line in headings.findall(again.text) if line != "# m"] == [
        line for line in headings.findall(plain.text) if line != "# m"
    ]
    prose = re.sub(r"```.*?```", "", again.text, flags=re.S)
    assert "<script>" not in again.text and "\u202e" not in again.text
    assert not re.search(
        r"(?<!\\)\]\(http://evil|(?<!\\)\*a", re.sub(r"`[^`\n]*`", "", prose)
    )  # no link, nothing in italics
    assert all(line.count("`") % 2 == 0 for line in re.sub(r"\\`", "", prose).splitlines())
    tables = [re.sub(r"\\\|", "", line) for line in prose.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in tables} <= {3}
    names = [node.value for node in ast.walk(ast.parse(program(again))) if isinstance(node, ast.Constant)]
    if place in ("source", "base"):
        assert {"source": EVIL, "base": f"path/to/{EVIL}"}[place] in names


def test_names_of_evaluation_sets_and_data_are_nothing_but_text(tmp_path):
    trainer = reward_trainer(tmp_path, eval_dataset={EVIL: embedded_rows(seed=1), "b": embedded_rows(seed=2)})
    trainer.evaluate()
    trainer.create_model_card(model_name=EVIL, dataset_name=EVIL, tags=[EVIL])
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert (
        card.text.count("Evaluation set ") == 2 and "\n# Owned" not in card.text and card.data.get("license") is None
    )


def test_the_licences_name_and_link_come_along(tmp_path):
    tiny_base(tmp_path / "base")
    metadata = "license: other\nlicense_name: research\nlicense_link: https://example.org/licence"
    (tmp_path / "base" / "README.md").write_text(f"---\n{metadata}\n---\n# base\n")
    assert find_license(str(tmp_path / "base")) == {
        "license": "other", "license_name": "research", "license_link": "https://example.org/licence"
    }  # fmt: skip


def test_the_figures_are_those_of_the_weights_and_of_the_evaluation_set(tmp_path):
    trainer = policy_trainer(
        tmp_path, max_steps=3, save_strategy="steps", save_steps=1, eval_strategy="steps", eval_steps=1, learning_rate=0.3,
        load_best_model_at_end=True, metric_for_best_model="nc2_accuracy",
    )  # fmt: skip
    trainer.train()
    trainer.evaluate(style_rows(num_users=3, seed=5))  # other users
    trainer.save_model()
    card = ModelCard.load(tmp_path / "out" / "README.md")
    metrics = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert metrics["Accuracy on unseen pairs, 2 choices"] == round(trainer.state.best_metric, 4)
    assert f"| `updates` | {trainer.state.best_global_step} |" in card.text and "8 users" in card.text


def test_a_pushed_card_names_no_folder_of_this_machine(tmp_path):
    trainer = policy_trainer(tmp_path)
    trainer.hub_model_id = "user/policy"  # as `push_to_hub` sets it
    trainer.save_model()
    text = (tmp_path / "out" / "README.md").read_text()
    assert str(tmp_path) not in text and 'load_policy("user/policy", base_model="path/to/base")' in text
    embedder = {"name_or_path": tiny_base(tmp_path / "embedder"), "max_length": 64}
    reward = reward_trainer(tmp_path / "reward", embedder=embedder, embed_size=32)
    reward.hub_model_id = "user/reward"
    reward.save_model()
    text = (tmp_path / "reward" / "out" / "README.md").read_text()
    assert str(tmp_path) not in text and "embedded by `embedder`" in text


@pytest.mark.parametrize("kind", ["adapter", "merged", "full", "columns", "conversation"])
def test_the_program_of_a_policys_card_runs(tmp_path, capsys, kind):
    changes = {
        "columns": partial(with_embeddings, embed_size=6),
        "conversation": lambda rows: rows.map(as_conversation),
    }
    tokenizer = chat_tokenizer() if kind == "conversation" else tiny_tokenizer()
    trainer = policy_trainer(tmp_path, changes.get(kind, lambda rows: rows), kind != "full", tokenizer)
    trainer.save_model()
    folder = tmp_path / "out"
    if kind == "merged":
        folder = folder / "merged"
        trainer.save_merged(str(folder))
    code = program(ModelCard.load(folder / "README.md"))
    assert ("load_policy" in code) == (kind not in ("merged", "full")) and str(folder) in code
    exec(code, {})
    assert capsys.readouterr().out


@pytest.mark.parametrize(
    "kwargs", [{}, {"conditional": False}, {"embedder": "base"}, {"embedder": "base", "conditional": False}]
)
def test_the_program_of_a_reward_models_card_runs(tmp_path, capsys, kwargs):
    if "embedder" in kwargs:
        kwargs = {
            **kwargs,
            "embedder": {"name_or_path": tiny_base(tmp_path / "base"), "max_length": 64},
            "embed_size": 32,
        }
    trainer = reward_trainer(tmp_path, **kwargs)
    trainer.save_model()
    card = ModelCard.load(tmp_path / "out" / "README.md")
    exec(program(card), {})
    assert "tensor(" in capsys.readouterr().out
    assert ("revision `main`" in card.text) == ("embedder" in kwargs)


def test_the_demos_reviewed_card_is_that_of_the_template(tmp_path):
    reviewed = ModelCard.load(ROOT / "model_cards" / "np_dpo_style.md")
    trainer = policy_trainer(tmp_path)
    trainer.save_merged(str(tmp_path / "merged"))
    written = ModelCard.load(tmp_path / "merged" / "README.md")
    assert metadata_errors(reviewed.data.to_dict()) == []
    assert program(reviewed) == program(written).replace(str(tmp_path / "merged"), "runs/np_dpo_style/merged")
    headings = re.compile(r"^## .*", re.M)
    assert headings.findall(reviewed.text) == headings.findall(written.text)
    accuracy = re.search(r"^\| accuracy \|(.*)\|$", reviewed.text, re.M).group(1).split("|")
    metrics = {result.metric_name: result.metric_value for result in reviewed.data.eval_results}
    shown = zip((0, 1, 3, 5, 10), accuracy, strict=True)
    for number, value in shown:
        choices = "1 choice" if number == 1 else f"{number} choices"
        assert f"{metrics[f'Accuracy on unseen pairs, {choices}']:.3f}" == value.strip()

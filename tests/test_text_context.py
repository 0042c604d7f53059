"""Users given as text: the tokens and the embeddings are those of training."""

import pytest
import torch
from transformers import AutoTokenizer

from np_trl import NPDPOTrainer
from np_trl.models.text_context import tokenize_pair

from .testing_utils import (
    as_conversation,
    chat_tokenizer,
    dpo_config,
    style_rows,
    tiny_base,
    tiny_policy,
    tiny_tokenizer,
    with_embeddings,
)


PAIRS = [
    {"prompt": "How do I fix the bike?", "chosen": " take it slow", "rejected": " ask a buddy, then take it slow"},
    {"prompt": "How do I sell the lamp?", "chosen": " prepare the area", "rejected": " proceed with great care"},
]


def build(tmp_path, dataset, tokenizer, **kwargs) -> NPDPOTrainer:
    return NPDPOTrainer(
        tiny_base(tmp_path / "base"),
        args=dpo_config(tmp_path / "out", **kwargs),
        train_dataset=dataset,
        processing_class=tokenizer,
    )


@pytest.mark.parametrize("kind, limit", [("strings", 32), ("conversations", 48), ("with template arguments", 52)])
@pytest.mark.parametrize("truncation", [None, "keep_start", "keep_end"])
def test_tokens_and_embeddings_are_those_of_training(tmp_path, kind, limit, truncation):
    dataset, tokenizer = style_rows(num_users=2), tiny_tokenizer()
    if kind != "strings":
        dataset, tokenizer = dataset.map(as_conversation), chat_tokenizer()
    if kind == "with template arguments":
        dataset = dataset.add_column("chat_template_kwargs", [{"greeting": "hello"}] * len(dataset))
    arguments = {} if truncation is None else {"max_length": limit, "truncation_mode": truncation}
    trainer = build(tmp_path, dataset, tokenizer, **arguments)
    lengths = [len(row["prompt_ids"] + row["chosen_ids"]) for row in trainer.train_dataset]
    assert max(lengths) > limit > min(lengths)  # some are truncated
    pairs = dataset.select(range(12)).to_list()
    for pair, row in zip(pairs, trainer.train_dataset, strict=False):
        start, chosen, rejected = tokenize_pair(pair, tokenizer)
        assert (chosen[:start], chosen[start:], rejected[start:]) == (
            row["prompt_ids"],
            row["chosen_ids"],
            row["rejected_ids"],
        )
    columns = trainer.train_dataset.with_format("torch")[:12]
    trained = torch.stack([columns["chosen_embeds"], columns["rejected_embeds"]], dim=1)  # (C, 2, H)
    embeds = trainer.model.eval().embed_pairs(pairs, tokenizer)
    torch.testing.assert_close(embeds[0], trained, rtol=1e-4, atol=1e-5)


def test_completions_start_where_the_tokens_differ_from_the_prompt(tmp_path):
    tokenizer = tiny_tokenizer()
    # the last token of the prompt merges with the completion: "take" is not " tak" + "e"
    pair = {"prompt": "How do I tak", "chosen": "e it slow", "rejected": "e care"}
    start, chosen, _ = tokenize_pair(pair, tokenizer)
    prompt = tokenizer(pair["prompt"])["input_ids"]
    assert start < len(prompt) and chosen[:start] == prompt[:start]
    assert (
        build(tmp_path, style_rows().map(lambda row: pair), tokenizer).train_dataset[0]["prompt_ids"] == chosen[:start]
    )


def test_a_pair_is_embedded_alike_alone_and_with_longer_ones(tmp_path):
    model, tokenizer = tiny_policy(tmp_path), tiny_tokenizer()
    together = model.embed_pairs(PAIRS, tokenizer)  # (1, 2, 2, H)
    assert together.shape == (1, 2, 2, 32)
    for index, pair in enumerate(PAIRS):
        torch.testing.assert_close(
            model.embed_pairs([pair], tokenizer)[0, 0], together[0, index], rtol=1e-4, atol=1e-5
        )


def test_a_user_without_choices_is_the_empty_context_set(tmp_path):
    model, tokenizer = tiny_policy(tmp_path), tiny_tokenizer()
    nobody = model.infer_user([], tokenizer)
    torch.testing.assert_close(
        nobody, model.infer_latents(torch.randn(1, 3, 2, 32), torch.zeros(1, 3, dtype=torch.bool))
    )
    someone = model.infer_user(PAIRS, tokenizer)
    torch.testing.assert_close(someone, model.infer_latents(model.embed_pairs(PAIRS, tokenizer), torch.ones(1, 2)))
    assert someone.shape == nobody.shape and not torch.allclose(someone, nobody)
    torch.testing.assert_close(model.infer_user(PAIRS[::-1], tokenizer), someone)


def test_latents_of_text_steer_what_is_written(tmp_path):
    model, tokenizer = tiny_policy(tmp_path), tiny_tokenizer()
    inputs = tokenizer("How do I fix the lamp?", return_tensors="pt")
    assert inputs.keys() == {"input_ids", "attention_mask"}
    latents = model.infer_user(PAIRS, tokenizer)
    turned = model.infer_user([{**p, "chosen": p["rejected"], "rejected": p["chosen"]} for p in PAIRS], tokenizer)
    assert not torch.allclose(
        model(**inputs, latents=latents).logits, model(**inputs, latents=turned).logits, atol=1e-3
    )


def test_what_cannot_be_embedded_is_named(tmp_path):
    model, tokenizer = tiny_policy(tmp_path), tiny_tokenizer()
    with pytest.raises(
        ValueError, match=r"Pair 1 has no \['rejected'\]. Each pair needs \['prompt', 'chosen', 'rejected'\]"
    ):
        model.infer_user([PAIRS[0], {"prompt": "a", "chosen": "b"}], tokenizer)
    with pytest.raises(ValueError, match="`pairs` is empty.*call `infer_user`"):
        model.embed_pairs([], tokenizer)


def test_a_policy_of_embedding_columns_says_so(tmp_path):
    for dataset, source in ((style_rows(), "trunk"), (with_embeddings(style_rows(), embed_size=32), "columns")):
        trainer = build(tmp_path / source, dataset, tiny_tokenizer())
        trainer.save_model(tmp_path / source / "policy")
        assert trainer.model.config.context_source == source
    with pytest.raises(ValueError, match="`context_source='columns'`.*call `infer_latents`"):
        trainer.model.infer_user(PAIRS, AutoTokenizer.from_pretrained(tmp_path / source / "policy"))

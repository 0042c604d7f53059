import io
import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerFast

from np_trl import NPRewardModel
from np_trl.data import embeddings
from np_trl.data.embeddings import EMBEDDING_KINDS, join_embeddings, text_id
from np_trl.models import texts
from np_trl.models.pooling import pool_tokens
from np_trl.models.text_embedder import TextEmbedder
from np_trl.models.texts import KINDS
from np_trl.scripts.reward_model_arguments import RewardModelArguments

from .test_examples import run
from .testing_utils import embedded_rows, style_rows, tiny_base, tiny_reward_model


TEXTS = ["so it goes", "a", "ask a buddy or take it slow", "take it slow"]


def tiny_bert(path, padding_side: str = "right") -> str:
    """Save a random BERT of 2 layers and hidden size 6, its words those of `TEXTS`, and return its path."""
    torch.manual_seed(0)
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *dict.fromkeys(" ".join(TEXTS).split())]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", padding_side=padding_side, model_max_length=256
    ).save_pretrained(path)
    sizes = {"hidden_size": 6, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=256, initializer_range=0.5, **sizes))
    model.save_pretrained(path)
    return str(path)


def hidden_states_alone(path: str, text: str, layer: int = -1) -> torch.Tensor:
    """What the model at `path` says of one text without padding, `(T, H)`."""
    inputs = AutoTokenizer.from_pretrained(path)(text, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        return AutoModel.from_pretrained(path).eval()(**inputs, output_hidden_states=True).hidden_states[layer][0]


@pytest.mark.parametrize("padding_side", ["right", "left"])
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_texts_of_a_batch_are_embedded_as_they_are_alone(tmp_path, pooling, padding_side):
    path = tiny_bert(tmp_path, padding_side)
    embeds = TextEmbedder(path, pooling=pooling).embed(TEXTS, batch_size=3)
    alone = [hidden_states_alone(path, text) for text in TEXTS]
    expected = torch.stack([states.mean(dim=0) if pooling == "mean" else states[-1] for states in alone])
    torch.testing.assert_close(embeds, expected)
    assert embeds.dtype == torch.float32 and not embeds.requires_grad


def test_a_language_model_embeds_by_its_last_token(tmp_path):
    path, texts = tiny_base(tmp_path), ["How do I fix the bike?", " take it slow"]
    embeds = TextEmbedder(path, pooling="last", max_length=128).embed(texts)
    expected = torch.stack([hidden_states_alone(path, text)[-1] for text in texts])
    torch.testing.assert_close(embeds, expected)


def test_pooling_passes_padding_by_on_either_side():
    states = torch.arange(8.0).view(2, 4, 1)
    mask = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1]])
    assert pool_tokens(states, mask, "mean").tolist() == [[0.5], [6.0]]
    assert pool_tokens(states, mask, "last").tolist() == [[1.0], [7.0]]


def test_normalized_embeddings_have_length_one_and_the_same_direction(tmp_path):
    path = tiny_bert(tmp_path)
    embeds, unit = TextEmbedder(path).embed(TEXTS), TextEmbedder(path, normalize=True).embed(TEXTS)
    torch.testing.assert_close(unit.norm(dim=-1), torch.ones(4))
    torch.testing.assert_close(unit * embeds.norm(dim=-1, keepdim=True), embeds)


def test_a_layer_is_chosen_by_its_number(tmp_path):
    path = tiny_bert(tmp_path)
    expected = torch.stack([hidden_states_alone(path, text, layer=1).mean(dim=0) for text in TEXTS])
    torch.testing.assert_close(TextEmbedder(path, layer=1).embed(TEXTS), expected)
    torch.testing.assert_close(TextEmbedder(path, layer=2).embed(TEXTS), TextEmbedder(path).embed(TEXTS))


def test_what_is_beyond_the_maximum_length_is_not_read(tmp_path):
    embedder = TextEmbedder(tiny_bert(tmp_path), max_length=4)  # [CLS] take it [SEP]
    torch.testing.assert_close(embedder.embed(["take it slow"]), embedder.embed(["take it"]))
    assert not torch.equal(embedder.embed(["take it"]), embedder.embed(["take"]))


def test_nothing_is_loaded_before_the_first_text():
    embedder = TextEmbedder("no/such-embedder")
    with pytest.raises(OSError, match="The embedder 'no/such-embedder' .* cannot be loaded"):
        embedder.embed(["a"])


@pytest.mark.parametrize("kind", EMBEDDING_KINDS)
def test_the_texts_of_options_are_those_that_a_table_of_embeddings_holds(tmp_path, kind):
    pairs = style_rows(num_users=1, pairs_per_user=2)
    options = [{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in pairs]
    embedder = TextEmbedder(tiny_base(tmp_path), kind=kind, max_length=128)
    texts = {
        text if kind == "response" else pair["prompt"] + "\n" + text
        for pair in pairs
        for text in (pair["chosen"], pair["rejected"])
    }
    rows = zip(map(text_id, sorted(texts)), embedder.embed(sorted(texts)).tolist(), strict=True)
    table = pairs.from_list([{"text_id": key, "kind": kind, "embedding": embedding} for key, embedding in rows])
    stored = torch.tensor(join_embeddings(pairs, table, kind)["chosen_embeds"][:])
    torch.testing.assert_close(embedder.embed_options(options), stored, rtol=1e-3, atol=1e-3)  # float16
    assert tuple(KINDS) == EMBEDDING_KINDS


TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def chat_gemma(path) -> str:
    """Save a tiny Gemma whose tokenizer has a chat template, and return its path."""
    tiny_base(path)
    tokenizer = AutoTokenizer.from_pretrained(path, chat_template=TEMPLATE)
    tokenizer.save_pretrained(path)
    return str(path)


def test_a_chat_template_makes_a_conversation_of_an_option(tmp_path):
    path = chat_gemma(tmp_path)
    embedder = TextEmbedder(path, pooling="last", kind="prompt_response", max_length=128, chat_template=True)
    options = [{"prompt": "How do I fix it?", "completion": "take it slow"}, {"prompt": "How?", "completion": "ask"}]
    embeds = embedder.embed_options(options)
    for option, embed in zip(options, embeds, strict=True):
        ids = AutoTokenizer.from_pretrained(path)(
            f"<bos><user>{option['prompt']}\n<assistant>{option['completion']}\n",
            add_special_tokens=False,
            return_tensors="pt",
        )["input_ids"]
        assert (ids == AutoTokenizer.from_pretrained(path).bos_token_id).sum() == 1
        with torch.no_grad():
            expected = AutoModel.from_pretrained(path).eval()(ids).last_hidden_state[0, -1]
        torch.testing.assert_close(embed, expected)
    # the conversation itself
    first = options[0]
    said = {
        "prompt": [{"role": "user", "content": first["prompt"]}],
        "completion": [{"role": "assistant", "content": first["completion"]}],
    }
    torch.testing.assert_close(embedder.embed_options([said]), embeds[:1])


def test_a_chat_template_is_for_options_with_their_prompts(tmp_path):
    settings = {"kind": "prompt_response", "chat_template": True, "max_length": 128}
    with pytest.raises(ValueError, match="`chat_template=True` embeds a conversation, but `kind='response'`"):
        TextEmbedder(str(tmp_path), chat_template=True)
    with pytest.raises(ValueError, match="Call `embed_options`"):
        TextEmbedder(chat_gemma(tmp_path / "chat"), **settings).embed(["a"])
    with pytest.raises(ValueError, match="has no chat template. Set `chat_template=False`"):
        TextEmbedder(tiny_base(tmp_path / "base"), **settings).embed_options([{"prompt": "a", "completion": "b"}])


def test_the_text_of_an_option_is_that_of_the_data(tmp_path):
    said = [{"role": "user", "content": "so"}, {"role": "assistant", "content": "it goes"}]
    for option in ({"prompt": said, "completion": said[1:]}, {"prompt": "so", "completion": "it goes"}):
        for kind in KINDS:
            assert texts.option_text(option, kind) == embeddings.option_text(option, kind)
    embedder = TextEmbedder(tiny_bert(tmp_path), kind="prompt_response")
    embeds = embedder.embed_options([{"prompt": said, "completion": said[1:]}])
    torch.testing.assert_close(embeds, embedder.embed(["so\nit goes\nit goes"]))


def test_a_conversation_is_scored_as_its_text_is(tmp_path):
    model = tiny_reward_model(embedder={"name_or_path": tiny_bert(tmp_path)}, option_ids=[text_id("it goes")]).eval()
    torch.nn.init.normal_(model.option_vectors.weight)
    said = [{"completion": [{"role": "assistant", "content": "it goes"}]}]
    torch.testing.assert_close(model.score(said), model.score([{"completion": "it goes"}]))


def test_the_embedder_runs_in_the_precision_that_is_asked_for(tmp_path):
    path = tiny_base(tmp_path, dtype=torch.bfloat16)
    options = [{"completion": text} for text in TEXTS]
    embeds = {
        dtype: TextEmbedder(path, max_length=128, dtype=dtype).embed_options(options, batch_size=2)
        for dtype in ("auto", "bfloat16", "float32")
    }
    assert all(values.dtype == torch.float32 for values in embeds.values())
    torch.testing.assert_close(embeds["auto"], embeds["bfloat16"])
    assert not torch.equal(embeds["bfloat16"], embeds["float32"])
    torch.testing.assert_close(embeds["bfloat16"], embeds["float32"], rtol=0.1, atol=0.1)


def test_the_start_of_a_text_is_kept_whatever_the_tokenizer_would_cut(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert(tmp_path), truncation_side="left")
    tokenizer.save_pretrained(tmp_path)
    embedder = TextEmbedder(str(tmp_path), max_length=4)
    torch.testing.assert_close(embedder.embed(["take it slow"]), embedder.embed(["take it"]))


PROMPT, COMPLETION = "How do I fix the bike before the rain comes?", " take it slow and ask a buddy"


@pytest.mark.parametrize("chat", [False, True])
def test_of_a_prompt_that_is_too_long_the_end_is_kept_and_the_completion_whole(tmp_path, caplog, chat):
    path, option = chat_gemma(tmp_path), {"prompt": PROMPT, "completion": COMPLETION}
    tokenizer = AutoTokenizer.from_pretrained(path)
    text = f"<bos><user>{PROMPT}\n<assistant>{COMPLETION}\n" if chat else f"{PROMPT}\n{COMPLETION}"
    ids = tokenizer(text, add_special_tokens=not chat)["input_ids"]
    start = len(tokenizer(text.split(COMPLETION)[0], add_special_tokens=not chat)["input_ids"])
    settings = {"kind": "prompt_response", "chat_template": chat}

    def embed(max_length: int) -> torch.Tensor:
        others = [{**option, "completion": " ask"}, option]  # of other lengths
        return TextEmbedder(path, max_length=max_length, **settings).embed_options([*others, option])[2]

    with torch.no_grad():
        model = AutoModel.from_pretrained(path).eval()
        shortest = len(ids) - start + 1 + chat  # one token of the prompt
        for max_length in (len(ids) - 1, shortest):
            # <bos> stays in front, where there is one
            kept = torch.tensor([[ids[0], *ids[1 - max_length :]] if chat else ids[-max_length:]])
            torch.testing.assert_close(embed(max_length), model(kept).last_hidden_state[0].mean(dim=0))
    assert caplog.text.count("are cut off at the start of the prompt") == 2
    assert torch.equal(embed(len(ids)), embed(128)) and caplog.text.count("are cut off") == 2
    with pytest.raises(ValueError, match=r"The completion ' take it slow.* `max_length=\d+` tokens.* by 1 or more"):
        embed(shortest - 1)
    with pytest.raises(ValueError, match="by 4 or more"):
        embed(shortest - 4)


def test_completions_that_are_cut_off_are_counted_once(tmp_path, caplog):
    embedder = TextEmbedder(tiny_bert(tmp_path), max_length=4)
    options = [{"completion": text} for text in TEXTS]
    cut = embedder.embed_options(options)
    embedder.embed_options(options)
    assert [record.getMessage() for record in caplog.records if record.name == "np_trl.models.text_embedder"] == [
        "3 of 4 texts have more than `max_length=4` tokens and are cut off at their end, as all such texts are."
    ]
    torch.testing.assert_close(cut, embedder.embed(["so it", "a", "ask a", "take it"]))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "`completion` of option 1 is empty"),
        (" ", "`completion` of option 1 is empty"),
        ([], "`completion` of option 1 is empty"),
        (5, "`completion` of option 1 is '5'"),
        ("a\ud800", "`completion` of option 1 holds half of a character"),
        ([{"role": "assistant", "content": [{"type": "image"}]}], r"has parts of type \['image'\]"),
        ([{"content": "a"}], "must be text, or a list of messages"),
    ],
)
def test_what_is_no_text_is_not_embedded(value, message):
    with pytest.raises(ValueError, match=message):
        TextEmbedder("no/such-embedder").embed_options([{"completion": "a"}, {"completion": value}])


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (None, r"Option 0 has no \['prompt', 'completion'\].*Give a dict"),
        ({"completion": "a"}, r"Option 0 has no \['prompt'\]"),
        (
            {"prompt": [{"role": "user", "content": "How?"}], "completion": "a"},
            r"\['prompt'\] of option 0 are conversations, but \['completion'\] are text",  # as of a pair in training
        ),
    ],
)
def test_an_option_is_a_dict_of_parts_of_one_format(option, message):
    with pytest.raises(ValueError, match=message):
        TextEmbedder("no/such-embedder", kind="prompt_response").embed_options([option])


class Pickle:
    def __reduce__(self):
        return os.mkdir, ("pickle_was_run",)


def to_pickle(path: Path) -> None:
    (path / "pytorch_model.bin").write_bytes(pickle.dumps(Pickle()))
    (path / "model.safetensors").unlink()


def to_index(path: Path) -> None:
    weights = load_file(path / "model.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(weights, "weights.bin")}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    torch.save(weights, path / "weights.bin")
    (path / "model.safetensors").unlink()


def to_torn(path: Path) -> None:
    (path / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes()[:-100])


def to_code(path: Path) -> None:
    config = json.loads((path / "config.json").read_text())
    config |= {"model_type": "theirs", "auto_map": {"AutoConfig": "theirs.Config", "AutoModel": "theirs.Model"}}
    (path / "config.json").write_text(json.dumps(config))
    (path / "theirs.py").write_text("import os\nos.mkdir('code_was_run')\n")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (to_pickle, OSError, "has no `model.safetensors`, and weights are read from safetensors alone"),
        (to_index, ValueError, r"'weights.bin'.*an index may name `.safetensors` files beside it alone"),
        (to_torn, OSError, "are not whole"),
        (to_code, ValueError, "brings its own code, which is not run"),
    ],
)
def test_no_embedder_runs_code(tmp_path, monkeypatch, change, error, message):
    path = Path(tiny_bert(tmp_path / "bert"))
    change(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))  # to whatever is asked
    with pytest.raises(error, match=message):
        TextEmbedder(str(path)).embed(["take it slow"])
    assert os.listdir(tmp_path) == ["bert"]


@pytest.mark.parametrize("name", ["", " ", None, 5, ["a"]])
def test_an_embedder_has_a_name(name):
    with pytest.raises(ValueError, match="names no embedder. Name one on the Hub, or its folder"):
        TextEmbedder.from_settings({"name_or_path": name})


def test_bad_values_are_named(tmp_path):
    path = tiny_bert(tmp_path)
    with pytest.raises(ValueError, match=r"`pooling='cls'` is unknown. Choose one of \['mean', 'last'\]"):
        TextEmbedder(path, pooling="cls")
    with pytest.raises(ValueError, match="`kind='prompt'` is unknown"):
        TextEmbedder(path, kind="prompt")
    with pytest.raises(ValueError, match=r"`dtype='int8'` is unknown. Choose one of \['auto', 'float32'"):
        TextEmbedder(path, dtype="int8")
    with pytest.raises(ValueError, match="`max_length=0` must be at least 1"):
        TextEmbedder(path, max_length=0)
    with pytest.raises(ValueError, match="`layer=-1` must be at least 0"):
        TextEmbedder(path, layer=-1)
    with pytest.raises(ValueError, match="`layer=3` exceeds the 2 layers"):
        TextEmbedder(path, layer=3).embed(TEXTS)
    with pytest.raises(ValueError, match="`max_length=257` exceeds the 256 tokens"):
        TextEmbedder(path, max_length=257).embed(TEXTS)
    with pytest.raises(ValueError, match="`max_length=2` leaves no token for a text beside the 2 special tokens"):
        TextEmbedder(path, max_length=2).embed(TEXTS)
    with pytest.raises(ValueError, match="`texts` is empty"):
        TextEmbedder(path).embed([])
    with pytest.raises(ValueError, match=r"Option 1 has no \['prompt'\], but `kind='prompt_response'`"):
        TextEmbedder(path, kind="prompt_response").embed_options(
            [{"prompt": "a", "completion": "a"}, {"completion": "a"}]
        )


def test_a_text_without_tokens_is_refused(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert(tmp_path))
    tokenizer.backend_tokenizer.post_processor = processors.Sequence([])  # no [CLS], no [SEP]
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="A text has no tokens"):
        TextEmbedder(str(tmp_path)).embed(["a", ""])


def test_a_recipe_names_the_embedder_and_the_data_what_was_embedded():
    arguments = RewardModelArguments(embedder_name_or_path="no/such-embedder", embedder_normalize=True)
    embedder = arguments.build(embedded_rows(), embedding_kind="prompt_response").config.embedder
    expected = {"normalize": True, "kind": "prompt_response", "pooling": "mean", "max_length": 256}
    expected |= {"revision": "main", "layer": None, "chat_template": False, "dtype": "auto"}
    assert embedder == {"name_or_path": "no/such-embedder", **expected}
    assert RewardModelArguments().build(embedded_rows()).config.embedder is None


def test_the_example_prints_rewards_for_a_user_and_for_nobody(tmp_path):
    model = tiny_reward_model(embedder={"name_or_path": tiny_bert(tmp_path / "bert")}).eval()
    model.save_pretrained(tmp_path / "reward")
    pairs = [{"prompt": "a", "chosen": "take it slow", "rejected": "ask a buddy"}]
    (tmp_path / "user.json").write_text(json.dumps({"pairs": pairs}))
    command = "--model_name_or_path reward --user user.json --prompt a --completions".split()
    printed = run("score.py", *command, "so it goes", "it goes", cwd=tmp_path).splitlines()[-3:]
    options = [{"completion": "so it goes"}, {"completion": "it goes"}]
    loaded = NPRewardModel.from_pretrained(tmp_path / "reward")
    rewards = torch.stack([loaded.score(options), loaded.score(options, loaded.infer_user(pairs))], dim=1)  # (2, 2)
    assert printed[0].split() == ["nobody", "user"]
    for line, option, values in zip(printed[1:], options, rewards.tolist(), strict=True):
        assert line.split(maxsplit=2) == [f"{values[0]:.4f}", f"{values[1]:.4f}", option["completion"]]

"""Pairs of strings as conversations."""

import pytest
from datasets import Dataset

from np_trl.data.conversations import to_conversations
from np_trl.data.loading import load_preferences
from np_trl.models.texts import text_id

from .testing_utils import as_conversation


ROWS = [
    {"user_id": "ada", "prompt": "How do I fix it?", "chosen": " Take it slow.", "rejected": " Ask.\n", "group": "a"},
    {"user_id": "bob", "prompt": "Where to?", "chosen": " Home.", "rejected": " Away.", "group": "b"},
]


def test_strings_become_messages_and_other_columns_stay():
    converted = to_conversations(Dataset.from_list(ROWS))
    assert converted.to_list() == [as_conversation({key: value.strip() for key, value in row.items()}) for row in ROWS]
    assert to_conversations(converted) is converted


def test_a_file_is_read_as_conversations_with_the_embeddings_of_its_texts(tmp_path):
    Dataset.from_list(ROWS).to_json(tmp_path / "rows.jsonl")
    texts = {row[side] for row in ROWS for side in ("chosen", "rejected")}
    table = [{"text_id": text_id(text), "kind": "response", "embedding": [float(len(text)), 1.0]} for text in texts]
    Dataset.from_list(table).to_parquet(tmp_path / "embeddings.parquet")
    embeddings = str(tmp_path / "embeddings.parquet")
    loaded = load_preferences(str(tmp_path / "rows.jsonl"), embeddings=embeddings, conversational=True)
    assert loaded[0]["chosen"] == [{"role": "assistant", "content": "Take it slow."}]
    assert loaded[0]["chosen_embeds"] == [14.0, 1.0]


def test_prompts_need_a_column():
    with pytest.raises(ValueError, match=r"there is no \['prompt'\]"):
        to_conversations(Dataset.from_list([{"chosen": "Hello. Home.", "rejected": "Hello. Away."}]))

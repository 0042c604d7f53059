"""What must hold of a preference pair of texts, in training and in use."""

import json

import pytest

from np_trl.models.texts import canonical, check_pair, check_text, option_text, plain_text, template_kwargs


PAIR = {"prompt": "How?", "chosen": "so", "rejected": "no"}


def message(content, role: str = "assistant", **fields) -> list[dict]:
    return [{"role": role, "content": content, **fields}]


CHAT = {"prompt": message("How?", "user"), "chosen": message("so"), "rejected": message("no")}
CALLS = [{"type": "function", "function": {"name": "get", "arguments": {"x": 1}}}]


@pytest.mark.parametrize(
    "pair",
    [
        PAIR,
        CHAT,
        {**CHAT, "prompt": message("", "system") + CHAT["prompt"]},
        {**CHAT, "chosen": message([{"type": "text", "text": "so"}])},
        {**CHAT, "chosen": message(None, tool_calls=CALLS)},
        {**CHAT, "tools": json.dumps([{"name": "get"}]), "chat_template_kwargs": {"enable_thinking": False}},
        {**PAIR, "chosen": "😀 \u202e \x00"},
    ],
)
def test_what_trl_trains_on_is_read(pair):
    check_pair(pair, "row 3")


@pytest.mark.parametrize(
    "change, error",
    [
        ({"chosen": None}, "`chosen` of row 3 is empty"),
        ({"chosen": " \u00a0\n"}, "`chosen` of row 3 is empty"),
        ({"prompt": []}, "`prompt` of row 3 is empty"),
        ({"chosen": 5}, r"`chosen` of row 3 is '5' \(int\), but must be text"),
        ({"chosen": b"x"}, "but must be text"),
        ({"chosen": ["a"]}, "but must be text"),
        ({"chosen": {}}, "but must be text"),
        ({"chosen": "\ud800"}, "holds half of a character"),
        ({"chosen": "no"}, "`chosen` and `rejected` of row 3 are the same .*drop it"),
        ({"chosen": message("so")}, r"\['chosen'\] of row 3 are conversations, but \['prompt', 'rejected'\] are text"),
        ({**CHAT, "chosen": message("")}, "`chosen` of row 3 is empty"),
        ({**CHAT, "chosen": message(None)}, "neither `content` nor `tool_calls`"),
        ({**CHAT, "chosen": message(7)}, "it must be text, or parts of text"),
        ({**CHAT, "chosen": message("so", role=None)}, "has the role 'None'"),
        ({**CHAT, "chosen": message([{"type": "image"}])}, r"parts of type \['image'\], but np_trl reads text"),
        ({**CHAT, "chosen": message([{"type": "text", "text": "no", "x": None}]), "rejected": message("no")}, None),
        ({**CHAT, "chosen": message("so", tool_calls="look")}, "has the `tool_calls` 'look'.*must be a list of calls"),
        ({**CHAT, "chosen": message("so", tool_calls=[object()])}, "must be a list of calls, of what JSON can say"),
        ({"tools": "{"}, "`tools` of row 3 is text, but no JSON"),
        ({"tools": '{"a": 1}'}, "must be a list of schemas"),
        ({"chat_template_kwargs": {"tokenize": False}}, r"`chat_template_kwargs` of row 3 sets \['tokenize'\]"),
        ({"chat_template_kwargs": {"messages": []}}, r"`chat_template_kwargs` of row 3 sets \['messages'\]"),
        ({"chat_template_kwargs": {1: 2}}, "must be a dict of template variables"),
        ({"chat_template_kwargs": "x"}, "must be a dict of template variables"),
        ({"chat_template_kwargs": None}, "must be a dict of template variables"),
    ],
)
def test_what_training_refuses_use_refuses_with_the_same_words(change, error):
    pair = {**PAIR, **change}
    if error is None:
        check_pair(pair, "row 3")
        return
    with pytest.raises(ValueError, match=error) as raised:
        check_pair(pair, "row 3")
    assert type(raised.value) is ValueError


@pytest.mark.parametrize("pair", [None, "x", ["chosen", "rejected"], 5])
def test_a_pair_is_a_dict(pair):
    with pytest.raises(ValueError, match="Pair 0 is .*, but a preference pair is a dict"):
        check_pair(pair, "Pair 0")


def test_a_text_is_that_of_all_parts_of_its_messages():
    assert plain_text(message([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])) == "a\nb"
    assert json.loads(plain_text(message(None, tool_calls=CALLS))) == CALLS[0]
    assert option_text({"prompt": CHAT["prompt"], "completion": CHAT["chosen"]}, "prompt_response") == "How?\nso"
    check_text(message(None, tool_calls=CALLS), "completion", "option 0")


def test_rows_of_arrow_and_of_json_are_alike():
    arrow = message("so", tool_calls=None, name=None)
    assert canonical(arrow) == canonical(message("so"))
    with pytest.raises(ValueError, match="are the same"):
        check_pair({**CHAT, "rejected": arrow}, "row 0")
    assert template_kwargs({"tools": '[{"name": "get"}]'}) == template_kwargs({"tools": [{"name": "get"}]})

"""
The words of preference pairs: the names of their parts, what is embedded of an option, and what must hold of a pair.

The one file of the remote-code shelf that `np_trl.data` imports too, so that training and use read choices alike. It
imports nothing but the standard library.
"""

import hashlib
import json


SIDES = ("chosen", "rejected")
EMBED_COLUMNS = ("chosen_embeds", "rejected_embeds")
ID_COLUMNS = ("chosen_option_id", "rejected_option_id")
# of an embedding: beyond it a sum or a difference of two values may be infinite in float32
LARGEST_VALUE = 1e37
# the parts of an option that are embedded, with a line break between them
KINDS = {"response": ("completion",), "prompt_response": ("prompt", "completion")}

# of `chat_template_kwargs`: arguments of `apply_chat_template` that a trainer sets, not variables of a template
_RESERVED_TEMPLATE_KWARGS = frozenset(
    (
        "add_generation_prompt", "continue_final_message", "conversation", "max_length", "messages", "padding",
        "return_assistant_tokens_mask", "return_dict", "return_tensors", "sanitize_control_tokens", "tokenize",
        "tokenizer_kwargs", "tools", "truncation",
    )
)  # fmt: skip


def text_id(text: str) -> str:
    """Return the key of a text: the first 16 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def plain_text(value: str | list[dict]) -> str:
    """
    Return a string unchanged, and of a conversation the texts of its messages, line breaks between them.

    The text of a message is its `content`, or the texts among its parts; calls of tools follow as JSON.
    """
    return value if isinstance(value, str) else "\n".join(map(_message_text, value))


def option_text(option: dict, kind: str) -> str:
    """
    Return the text that is embedded of an option, and that its embedding is filed under.

    Args:
        option (`dict`):
            `completion`, and `prompt` for the kind `"prompt_response"`: strings or conversations.
        kind (`str`):
            What is embedded: `"response"` or `"prompt_response"`.
    """
    return "\n".join(plain_text(option[part]) for part in KINDS[kind])


def template_kwargs(pair: dict) -> dict:
    """Return the arguments of the chat template in a pair: its `tools`, which may be JSON text, and `chat_template_kwargs`."""
    tools = pair.get("tools")
    tools = json.loads(tools) if isinstance(tools, str) else tools
    return {"tools": tools, **(pair.get("chat_template_kwargs") or {})}


def canonical(value):
    """Return a value of JSON without the `None`s by which Arrow fills up the fields of a struct."""
    if isinstance(value, dict):
        return {key: canonical(part) for key, part in sorted(value.items()) if part is not None}
    return [canonical(part) for part in value] if isinstance(value, (list, tuple)) else value


def check_pair(pair: dict, where: str, required: tuple[str, ...] = ("prompt", *SIDES)) -> None:
    """
    Check a preference pair of texts, alike in training and in use.

    Args:
        pair (`dict`):
            `chosen` and `rejected`, and `prompt` unless they begin with it; `tools` and `chat_template_kwargs`, *optional*.
        where (`str`):
            What to call the pair in an error, such as `"row 3 of the train dataset"`.
        required (`tuple[str, ...]`, *optional*):
            Keys that the pair must have.

    Raises:
        `ValueError`: if a part is absent, empty, no text, or of another format than the others; or if the pair is a tie.
    """
    if not isinstance(pair, dict):
        raise ValueError(f"{where} is {_show(pair)}, but a preference pair is a dict with {list(required)}.")
    missing = [key for key in required if key not in pair]
    if missing:
        implicit = " Where `chosen` and `rejected` begin with it, TRL's `extract_prompt` tells it apart." * (
            "prompt" in missing
        )
        raise ValueError(f"{where} has no {missing}. Each pair needs {list(required)}.{implicit}")
    check_parts({name: pair[name] for name in ("prompt", *SIDES) if name in pair}, where)
    if all(side in pair for side in SIDES) and canonical(pair["chosen"]) == canonical(pair["rejected"]):
        raise ValueError(describe_tie(where, "the same", pair["chosen"]))
    _check_template_kwargs(pair, where)


def check_parts(parts: dict, where: str) -> None:
    """
    Check the parts of a pair or of an option: texts, or conversations, all of one format.

    Args:
        parts (`dict`):
            Texts or conversations by their names, such as `"prompt"`.
        where (`str`):
            What to call the pair or the option in an error.

    Raises:
        `ValueError`: if a part is empty, no text, or of another format than the others.
    """
    for name, value in parts.items():
        check_text(value, name, where)
    conversations = [name for name, value in parts.items() if isinstance(value, list)]
    if 0 < len(conversations) < len(parts):
        others = [name for name in parts if name not in conversations]
        raise ValueError(
            f"{conversations} of {where} are conversations, but {others} are text. Give all of them as lists of messages, or "
            "all as text; where `chosen` and `rejected` are whole conversations, leave `prompt` out."
        )


def describe_tie(where: str, how: str, shown) -> str:
    """The message about a pair whose options are the same."""
    return (
        f"`chosen` and `rejected` of {where} are {how} ({str(shown)[:60]!r}). A tie says nothing about the user: drop it; "
        "training does so with `drop_ties=True`."
    )


def describe_too_large(what: str, value: float) -> str:
    """The message about an embedding with a value that float32 cannot compute with."""
    return (
        f"{what} holds a value of size {value:.3g}, but float32 computes with values up to {LARGEST_VALUE:.0e}. Scale the "
        "embeddings down, or drop the pair."
    )


def check_text(value, name: str, where: str) -> None:
    """
    Check a prompt or a completion: a text, or a conversation.

    Args:
        value (`str` or `list[dict]`):
            The text, or messages with `role` and `content` (text, or parts of the type `"text"`) or `tool_calls`.
        name (`str`), where (`str`):
            What to call it in an error.

    Raises:
        `ValueError`: if it is empty, or neither a text nor a conversation of texts.
    """
    if value is None or isinstance(value, (str, list)) and not value:
        raise ValueError(_describe_empty(name, where))
    if isinstance(value, str):
        text = value
    elif isinstance(value, list) and all(isinstance(message, dict) and "role" in message for message in value):
        for message in value:
            _check_message(message, name, where)
        text = _message_text(value[-1])
    else:
        raise ValueError(
            f"`{name}` of {where} is {_show(value)}, but must be text, or a list of messages with `role` and `content`."
        )
    if not text.strip():
        raise ValueError(_describe_empty(name, where))
    try:
        plain_text(value).encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"`{name}` of {where} holds half of a character ({text[error.start : error.start + 1]!r}), which is no text. Read "
            'the file as UTF-8, or drop such characters (`text.encode("utf-8", "ignore").decode()`).'
        ) from error


def _check_message(message: dict, name: str, where: str) -> None:
    content, calls = message.get("content"), message.get("tool_calls")
    parts = content if isinstance(content, list) else []
    kinds = {part.get("type") if isinstance(part, dict) else type(part).__name__ for part in parts}
    if kinds - {"text"}:
        raise ValueError(
            f"A message in `{name}` of {where} has parts of type {sorted(map(str, kinds - {'text'}))}, but np_trl reads text "
            'alone. Leave them out, or describe them in a part {"type": "text", "text": ...}.'
        )
    if not isinstance(content, (str, list, type(None))) or any(
        not isinstance(part.get("text"), str) for part in parts
    ):
        raise ValueError(
            f"A message in `{name}` of {where} has the content {_show(content)}, but it must be text, or parts of text."
        )
    if calls is not None and not _is_json(calls, list):
        raise ValueError(
            f"A message in `{name}` of {where} has the `tool_calls` {_show(calls)}, but they must be a list of calls, of what JSON "
            "can say."
        )
    if content is None and not calls:
        raise ValueError(
            f"A message in `{name}` of {where} is empty: it has neither `content` nor `tool_calls`. Fill it in or drop it."
        )
    if not isinstance(message["role"], str):
        raise ValueError(
            f"A message in `{name}` of {where} has the role {_show(message['role'])}, but it must be text, such as 'user'."
        )


def _message_text(message: dict) -> str:
    content = message.get("content") or ""
    if isinstance(content, list):
        content = "\n".join(part["text"] for part in content)
    calls = canonical(message.get("tool_calls") or [])
    return "\n".join([*([content] if content else []), *(json.dumps(call, ensure_ascii=False) for call in calls)])


def _check_template_kwargs(pair: dict, where: str) -> None:
    kwargs = pair.get("chat_template_kwargs", {})
    if not _is_json(kwargs, dict) or not all(isinstance(key, str) for key in kwargs):
        raise ValueError(
            f"`chat_template_kwargs` of {where} is {_show(kwargs)}, but must be a dict of template variables."
        )
    reserved = sorted(_RESERVED_TEMPLATE_KWARGS & kwargs.keys())
    if reserved:
        raise ValueError(
            f"`chat_template_kwargs` of {where} sets {reserved}, which are no variables of a template and are set when it is "
            "applied. Leave them out; `tools` has a column of its own."
        )
    try:
        tools = template_kwargs(pair)["tools"]
    except json.JSONDecodeError as error:
        raise ValueError(
            f"`tools` of {where} is text, but no JSON ({error}). Give a list of schemas, or their JSON."
        ) from error
    if not isinstance(tools, (list, type(None))):
        raise ValueError(f"`tools` of {where} is {_show(tools)}, but must be a list of schemas, or their JSON.")


def _is_json(value, kind: type) -> bool:
    """Whether a value is of a kind, and of what JSON can say."""
    try:
        json.dumps(canonical(value))
    except (TypeError, ValueError, RecursionError):
        return False
    return isinstance(value, kind)


def _describe_empty(name: str, where: str) -> str:
    return f"`{name}` of {where} is empty. Fill it in or drop it."


def _show(value) -> str:
    return f"{str(value)[:60]!r} ({type(value).__name__})"

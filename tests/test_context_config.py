"""Arguments of both trainers: each error names the field, the value and the fix."""

import pytest

from .testing_utils import dpo_config, reward_config


@pytest.mark.parametrize("config", [reward_config, dpo_config])
@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_targets", "6", "must be a whole number"),
        ("num_targets", 2.5, "must be a whole number"),
        ("num_targets", True, "must be a whole number"),
        ("num_targets", 0, "must be at least 1"),
        ("max_context", None, "must be a whole number"),
        ("max_context", float("nan"), "must be a whole number"),
        ("min_context", -1, "must be at least 0"),
        ("eval_num_contexts", 3, "must be a list of whole numbers"),
        ("eval_num_contexts", "3", "must be a list of whole numbers"),
        ("eval_num_contexts", [1.5], "must be a list of whole numbers"),
        ("eval_num_contexts", [0, "2"], "must be a list of whole numbers"),
        ("eval_num_contexts", [0, -2], "must be a list of whole numbers, each 0 or more"),
        ("eval_num_contexts", [], "must hold at least one number"),
        ("eval_shuffled_contexts", 2, "must be a list of whole numbers"),
        ("eval_shuffled_contexts", [1], "must be among `eval_num_contexts"),
        ("eval_num_draws", 1.0, "must be a whole number"),
        ("context_in_target", "no", "must be `True` or `False`"),
        ("drop_ties", "false", "must be `True` or `False`"),
        ("eval_group_column", 3, "must be the name of a column"),
    ],
)
def test_values_of_another_type_or_range(config, field, value, message, tmp_path):
    with pytest.raises(ValueError) as error:
        config(tmp_path, **{field: value})
    assert f"`{field}={value!r}` {message}" in str(error.value)


def test_numbers_of_contexts_may_be_in_any_order_and_repeated(tmp_path):
    assert reward_config(tmp_path, eval_num_contexts=[2, 0, 2]).eval_shuffled_contexts == [2]
    assert reward_config(tmp_path, eval_num_contexts=(0, 1), eval_shuffled_contexts=[]).eval_shuffled_contexts == []

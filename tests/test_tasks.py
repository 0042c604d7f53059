from collections import defaultdict

import numpy as np
import pytest
from datasets import Dataset, concatenate_datasets
from torch.utils.data import DataLoader

from np_trl.data import (
    ContextualCollator,
    EmbeddingTargets,
    EvaluationTasks,
    PreferenceRows,
    TaskSampling,
    TrainingTasks,
)

from .testing_utils import embedded_rows


SAMPLING = TaskSampling(min_context=0, max_context=4, num_targets=5, context_in_target=False)


def tasks(seed: int = 0, sampling: TaskSampling = SAMPLING, **kwargs) -> TrainingTasks:
    return TrainingTasks(PreferenceRows(embedded_rows(**kwargs)), sampling, seed)


def draw(task, sampling: TaskSampling = SAMPLING) -> tuple[int, tuple, tuple]:
    context, target = task.draw(sampling)
    return task.user, tuple(context.tolist()), tuple(target.tolist())


def test_rows_are_grouped_by_user_in_their_order():
    dataset = Dataset.from_dict({"user_id": ["b", "a", "b", "c", "a", "b"], "n": list(range(6))})
    rows = PreferenceRows(dataset)
    assert rows.user_ids == ["b", "a", "c"]
    assert [rows.of_user(user).tolist() for user in range(3)] == [[0, 2, 5], [1, 4], [3]]
    assert rows.take(rows.of_user(1)) == [{"user_id": "a", "n": 1}, {"user_id": "a", "n": 4}]


def test_embeddings_are_read_in_the_order_asked_for():
    dataset = embedded_rows().select(range(90, -1, -1))
    chosen, rejected = np.array(dataset["chosen_embeds"]), np.array(dataset["rejected_embeds"])
    embeds = PreferenceRows(dataset).embeds([7, 3, 3]).numpy()
    np.testing.assert_array_equal(embeds, np.stack([chosen, rejected], axis=1)[[7, 3, 3]].astype(np.float32))


def test_a_task_is_a_function_of_seed_epoch_and_position():
    one, other = tasks(), tasks()
    items = [5, 3, 2 * len(one) + 1, 0]
    forwards = {item: draw(one[item]) for item in items}
    assert {item: draw(other[item]) for item in reversed(items)} == forwards


def test_epochs_and_seeds_differ():
    one, other = tasks(), tasks(seed=1)
    first = [draw(one[item]) for item in range(len(one))]
    assert first != [draw(one[len(one) + item]) for item in range(len(one))]
    assert first != [draw(other[item]) for item in range(len(other))]


def test_an_epoch_visits_users_in_proportion_to_their_pairs():
    short, long = embedded_rows(num_users=2, pairs_per_user=9), embedded_rows(num_users=1, pairs_per_user=25)
    dataset = Dataset.from_list(short.to_list() + [{**row, "user_id": 2} for row in long])
    view = TrainingTasks(PreferenceRows(dataset), SAMPLING, 0)
    assert sorted(view[item].user for item in range(len(view))) == [0, 1, 2, 2, 2, 2, 2]


@pytest.mark.parametrize("context_in_target", [True, False])
def test_contexts_lie_inside_or_outside_the_targets(context_in_target):
    sampling = TaskSampling(0, 4, 5, context_in_target)
    view = tasks(sampling=sampling, pairs_per_user=9)
    sizes = set()
    for item in range(5 * len(view)):
        user, context, target = draw(view[item], sampling)
        assert len(set(target)) == 5 and len(set(context)) == len(context)
        assert set(context) <= set(target) if context_in_target else not set(context) & set(target)
        assert set(context + target) <= set(view.rows.of_user(user).tolist())
        sizes.add(len(context))
    assert sizes == {0, 1, 2, 3, 4}  # each task draws its own N_C


def evaluation(shuffled: bool = False) -> EvaluationTasks:
    rows = PreferenceRows(embedded_rows(num_users=7, pairs_per_user=12))
    shuffled_contexts = [0, 1, 4] if shuffled else None
    return EvaluationTasks(rows, [0, 1, 4], num_targets=5, seed=0, shuffled_contexts=shuffled_contexts)


def test_evaluation_contexts_are_nested_and_never_among_the_targets():
    view, contexts, targets = evaluation(), {}, {}
    for item in range(len(view)):
        user, context, target = draw(view[item])
        assert not set(context) & set(target)
        assert targets.setdefault(user, target) == target  # the same for every N_C
        assert len(target) == 5
        contexts.setdefault(user, []).append(context)
    assert len(contexts) == 7
    for own in contexts.values():
        assert [len(context) for context in own] == [0, 1, 4] and own[1] == own[2][:1]


def test_the_shuffled_control_shows_the_contexts_of_others():
    own, control = evaluation(), evaluation(shuffled=True)
    contexts = {draw(own[item])[0]: draw(own[item])[1] for item in range(14, 21)}
    targets = {draw(own[item])[0]: draw(own[item])[2] for item in range(14, 21)}
    shown, strangers = defaultdict(list), defaultdict(list)
    for item in range(2 * 7 * 4, len(control)):  # of N_C = 4
        user, context, target = draw(control[item])
        shown[user] += target
        strangers[user] += [owner for owner, pairs in contexts.items() if pairs == context]
    assert {user: sorted(pairs) for user, pairs in shown.items()} == {u: sorted(p) for u, p in targets.items()}
    for user, others in strangers.items():
        assert len(set(others)) == len(others) == 4 and user not in others
    assert sorted(sum(strangers.values(), [])) == sorted(list(range(7)) * 4)  # everybody equally often


def test_the_shuffled_control_of_two_users_swaps_them():
    rows = PreferenceRows(embedded_rows(num_users=2, pairs_per_user=6))
    control = EvaluationTasks(rows, [0, 4], num_targets=5, seed=0, shuffled_contexts=[4])
    assert [(control[item].user, control[item].context_user) for item in range(len(control))] == [(0, 1), (1, 0)]


def test_users_with_few_pairs_are_evaluated_where_a_target_is_left():
    long, short = embedded_rows(num_users=2, pairs_per_user=8), embedded_rows(num_users=1, pairs_per_user=3)
    short = short.remove_columns("user_id").add_column("user_id", [99] * 3)
    rows = PreferenceRows(concatenate_datasets([long, short]))
    view, sizes, targets = EvaluationTasks(rows, [0, 1, 4], num_targets=5, seed=0), defaultdict(list), {}
    for item in range(len(view)):
        user, context, target = draw(view[item])
        sizes[user].append(len(context))
        assert targets.setdefault(user, target) == target and not set(context) & set(target)
    assert sizes == {0: [0, 1, 4], 1: [0, 1, 4], 2: [0, 1]}
    assert [len(target) for target in targets.values()] == [4, 4, 2]


def test_every_draw_of_the_evaluation_has_other_contexts():
    rows = PreferenceRows(embedded_rows(num_users=2, pairs_per_user=30))
    view = EvaluationTasks(rows, [3], num_targets=5, seed=0, num_draws=4)
    contexts = {tuple(draw(view[item])[1]) for item in range(len(view))}
    assert len(view) == len(contexts) == 8


def test_targets_may_be_kept_to_other_prompts_than_the_contexts():
    rows = embedded_rows(num_users=3, pairs_per_user=20)
    prompts = [f"prompt {index % 7}" for index in range(60)]
    view = EvaluationTasks(
        PreferenceRows(rows.add_column("prompt", prompts)), [0, 3], num_targets=5, seed=0, disjoint_prompts=True
    )
    for item in range(len(view)):
        _, context, target = draw(view[item])
        assert target and {prompts[row] for row in context}.isdisjoint(prompts[row] for row in target)
    one_prompt = PreferenceRows(rows.add_column("prompt", ["the same"] * 60))
    view = EvaluationTasks(one_prompt, [0, 3], num_targets=5, seed=0, disjoint_prompts=True)
    with pytest.raises(ValueError, match="Every pair of user .* has a prompt that is in its context of 3"):
        draw(view[0])
    with pytest.raises(ValueError, match="has no `prompt` column"):
        EvaluationTasks(PreferenceRows(rows), [0, 3], num_targets=5, seed=0, disjoint_prompts=True)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_do_not_depend_on_the_number_of_workers(num_workers):
    view = tasks()
    collator = ContextualCollator(EmbeddingTargets(), SAMPLING)
    loader = DataLoader(view, batch_size=3, collate_fn=collator, num_workers=num_workers, sampler=range(len(view)))
    for batch, start in zip(loader, range(0, len(view), 3), strict=True):
        expected = collator([view[item] for item in range(start, min(start + 3, len(view)))])
        assert batch.keys() == expected.keys()
        assert all(batch[key].equal(expected[key]) for key in batch)


def with_roles(num_users: int = 6, pairs_per_user: int = 12) -> Dataset:
    """Users whose first pairs are for contexts, and the other ones for targets."""
    roles = (["context"] * 8 + ["target"] * (pairs_per_user - 8)) * num_users
    return embedded_rows(num_users, pairs_per_user).add_column("role", roles)


@pytest.mark.parametrize("shuffled", [None, [5]])
def test_roles_say_which_pairs_are_contexts_and_which_are_targets(shuffled):
    rows = PreferenceRows(with_roles())
    evaluation = EvaluationTasks(rows, [0, 5], num_targets=20, seed=0, shuffled_contexts=shuffled)
    targets = defaultdict(set)
    for task in map(evaluation.__getitem__, range(len(evaluation))):
        context, target = task.draw(SAMPLING)
        assert rows.is_context[context].all() and not rows.is_context[target].any()
        assert len(context) == task.num_context
        targets[task.user, task.num_context] |= set(target.tolist())
    assert all(len(found) == 4 for found in targets.values())
    assert {num_context for _, num_context in targets} == ({5} if shuffled else {0, 5})


def test_with_roles_a_user_is_evaluated_where_its_contexts_suffice():
    all_contexts = embedded_rows(1, 12).add_column("role", ["context"] * 12).remove_columns("user_id")
    all_contexts = all_contexts.add_column("user_id", [7] * 12).select_columns(with_roles().column_names)
    rows = PreferenceRows(concatenate_datasets([with_roles(2), all_contexts]))
    assert rows.max_contexts.tolist() == [8, 8, -1]
    evaluation = EvaluationTasks(rows, [0, 8, 9], num_targets=3, seed=0)
    assert {(task.user, task.num_context) for task in map(evaluation.__getitem__, range(len(evaluation)))} == {
        (0, 0),
        (0, 8),
        (1, 0),
        (1, 8),
    }


def test_an_unknown_role_is_refused():
    with pytest.raises(ValueError, match=r"\['both'\]. It may hold 'context' and 'target' only"):
        PreferenceRows(embedded_rows(1).add_column("role", ["both"] * 12))


def test_targets_of_options_that_no_context_has_are_told_apart():
    options = np.random.default_rng(0).permuted(np.tile(list("abcdefgh"), (60, 1)), axis=1)[:, :2]
    rows = PreferenceRows(
        Dataset.from_dict({"user_id": [0] * 30 + [1] * 30, "chosen": options[:, 0], "rejected": options[:, 1]})
    )
    found = set()
    evaluation = EvaluationTasks(rows, [0, 3], num_targets=20, seed=0)
    for task in map(evaluation.__getitem__, range(len(evaluation))):
        contexts, targets = task.protocol.split(task.user, task.key)
        seen = set(options[contexts].flatten())  # of the largest context, at every N_C
        expected = [not seen & set(options[target]) for target in targets]
        assert task.has_new_options().tolist() == expected
        found |= set(expected)
    assert found == {True, False}


def test_prompts_that_are_conversations_are_told_apart():
    prompts = [[{"role": "user", "content": text}] for text in ("a", "b", "a")]
    rows = PreferenceRows(Dataset.from_dict({"user_id": [0, 0, 1], "prompt": prompts}))
    assert rows.prompt_codes().tolist() == [0, 1, 0]


def test_the_group_of_a_user_is_read_from_its_first_row():
    dataset = Dataset.from_dict({"user_id": ["b", "a", "b"], "group": ["x", "y", "z"], "flag": [True, False, True]})
    rows = PreferenceRows(dataset)
    assert dict(zip(rows.user_ids, rows.groups("group"), strict=True)) == {"b": "x", "a": "y"}
    assert rows.groups("flag") == ["True", "False"]
    with pytest.raises(ValueError, match="`eval_group_column='kind'` is no column"):
        rows.groups("kind")

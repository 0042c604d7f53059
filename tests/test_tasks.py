from collections import defaultdict

import numpy as np
import pytest
from datasets import Dataset, concatenate_datasets
from torch.utils.data import DataLoader

from np_trl import NPRewardTrainer
from np_trl.data import (
    ContextualCollator,
    EmbeddingTargets,
    EvaluationTasks,
    PreferenceRows,
    TaskSampling,
    TrainingTasks,
)
from np_trl.data.embedding_columns import EMBED_COLUMNS
from np_trl.data.tasks import TrainingTask

from .testing_utils import embedded_rows, reward_config, tiny_reward_model


SAMPLING = TaskSampling(min_context=0, max_context=4, num_targets=5, context_in_target=False)


def tasks(seed: int = 0, sampling: TaskSampling = SAMPLING, **kwargs) -> TrainingTasks:
    return TrainingTasks(PreferenceRows(embedded_rows(**kwargs)), sampling, seed)


def draw(task) -> tuple[int, tuple, tuple]:
    context, target = task.draw()
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
        user, context, target = draw(view[item])
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


def test_a_stranger_of_the_control_gives_no_answers_away():
    """A person under two names: what a stranger's context shows is not among the targets."""
    rows = embedded_rows(num_users=1).to_list()
    twice = PreferenceRows(Dataset.from_list(rows + [{**row, "user_id": 1} for row in rows]))
    control = EvaluationTasks(twice, [0, 4], num_targets=20, seed=0, shuffled_contexts=[4], num_draws=5)
    for task in map(control.__getitem__, range(len(control))):
        contexts, targets = task.draw()
        assert len(contexts) == 4 and not set(twice.pair_codes[contexts]) & set(twice.pair_codes[targets])


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
    collator = ContextualCollator(EmbeddingTargets())
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
        context, target = task.draw()
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
        EvaluationTasks(PreferenceRows(embedded_rows(1).add_column("role", ["both"] * 12)), [0], num_targets=5, seed=0)


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


# by how much the embeddings of a pair differ the second time
ROUNDING = {"text": 0.1, "embedding": 0.0, "rounded embedding": 1e-5}


def repeated(known_by: str, mirrored: bool, num_users: int, pairs_per_user: int = 8) -> Dataset:
    """Noise, every pair twice, in random order: the second time as it was or the other way round."""
    rng = np.random.default_rng(0)
    rows, size = [], 6
    for user in range(num_users):
        own = []
        for pair in range(pairs_per_user):
            sides = [(f"{user} {pair} {side}", rng.normal(size=size)) for side in "ab"]
            for turn in range(2):
                embeds = [embed + turn * ROUNDING[known_by] * rng.normal(size=size) for _, embed in sides]
                texts = [text + " " * turn * (known_by != "text") for text, _ in sides]
                own.append(dict(zip(("chosen", "rejected", *EMBED_COLUMNS), (*texts, *embeds), strict=True)))
                sides = sides[::-1] if mirrored else sides
        rows += [{"user_id": user, **own[index]} for index in rng.permutation(len(own))]
    return Dataset.from_list(rows)


@pytest.mark.parametrize("known_by", ROUNDING)
@pytest.mark.parametrize("mirrored", [False, True])
def test_what_is_repeated_never_is_both_context_and_target(known_by, mirrored):
    rows = PreferenceRows(repeated(known_by, mirrored, num_users=6))
    codes = rows.pair_codes
    assert rows.counts.tolist() == [16] * 6 and len(set(codes)) == 48
    evaluation = EvaluationTasks(rows, [0, 3, 5], num_targets=20, seed=0, num_draws=3)
    for task in map(evaluation.__getitem__, range(len(evaluation))):
        contexts, targets = task.draw()
        assert len(contexts) == task.num_context and len(targets) == 3
        assert len(set(codes[contexts]) | set(codes[targets])) == len(contexts) + 3


@pytest.mark.parametrize(
    ("known_by", "mirrored"), [("embedding", False), ("embedding", True), ("rounded embedding", False)]
)
def test_noise_that_is_doubled_is_predicted_by_chance(known_by, mirrored, tmp_path):
    """The untrained model scores by the mean difference of the context, and would know a pair that it was shown."""
    rows = repeated(known_by, mirrored, num_users=250).remove_columns(["chosen", "rejected"])
    args = reward_config(tmp_path, eval_num_contexts=[0, 1, 3, 5], per_device_eval_batch_size=250)
    trainer = NPRewardTrainer(tiny_reward_model(), args=args, train_dataset=rows.select(range(32)), eval_dataset=rows)
    metrics = trainer.evaluate()
    assert metrics["eval_nc0_accuracy"] == 0.5
    for num_context in (1, 3, 5):
        assert metrics[f"eval_nc{num_context}_users"] == 250
        error = metrics[f"eval_nc{num_context}_accuracy_se"]
        assert 0.01 < error < 0.03 and abs(metrics[f"eval_nc{num_context}_accuracy"] - 0.5) < 3 * error


def test_without_repeated_pairs_the_draw_is_a_cut_of_one_permutation():
    """So that figures measured before pairs were compared stay."""
    rows = PreferenceRows(embedded_rows(num_users=3))
    evaluation = EvaluationTasks(rows, [0, 4], num_targets=5, seed=7)
    for user in range(3):
        pairs = np.random.default_rng((7, 0, user)).permutation(rows.of_user(user))
        contexts, targets = evaluation.split(user, (7, 0))
        assert contexts.tolist() == pairs[:4].tolist() and targets.tolist() == pairs[4:9].tolist()


def test_users_of_too_few_different_pairs_are_left_out_with_a_count(caplog):
    rows = embedded_rows(num_users=3).to_list()
    rows = rows[:24] + [rows[24], rows[25], rows[26]] * 4  # the last user has three pairs, four times
    evaluation = EvaluationTasks(PreferenceRows(Dataset.from_list(rows)), [0, 2, 4], num_targets=5, seed=0)
    found = {(task.user, task.num_context) for task in map(evaluation.__getitem__, range(len(evaluation)))}
    assert found == {(user, number) for user in (0, 1, 2) for number in (0, 2, 4)} - {(2, 4)}
    assert "1 of 3 users are left out" in caplog.text and "such as user 2: 3 different ones of 12" in caplog.text


def test_an_evaluation_of_nobody_is_refused():
    rows = PreferenceRows(Dataset.from_list([embedded_rows()[0]] * 5))
    with pytest.raises(ValueError, match="No user has enough different pairs for an evaluation at 2 context pairs"):
        EvaluationTasks(rows, [2, 4], num_targets=5, seed=0)


@pytest.mark.parametrize("nothing", [None, ""])
def test_rows_without_a_role_may_be_either(nothing):
    roles = (["context"] * 3 + [nothing] * 6 + ["target"] * 3) * 4
    rows = PreferenceRows(embedded_rows(num_users=4).add_column("role", roles))
    evaluation = EvaluationTasks(rows, [0, 2, 7], num_targets=20, seed=0)
    assert rows.max_contexts.tolist() == [9] * 4
    for task in map(evaluation.__getitem__, range(len(evaluation))):
        contexts, targets = task.draw()
        assert {roles[row] for row in contexts} <= {"context", nothing} and not set(contexts) & set(targets)
        assert {roles[row] for row in targets} == {"target", nothing}
        # of the 7 contexts that are kept apart, 3 are contexts anyway
        assert len(targets) == 3 + 6 - 4
        assert task.num_context == 0 or {roles[row] for row in contexts[:3]} == {"context"}


def test_rows_that_are_all_context_or_either_keep_a_target():
    rows = PreferenceRows(embedded_rows(num_users=1).add_column("role", ["context"] * 9 + [None] * 3))
    assert rows.max_contexts.tolist() == [11]


def test_a_target_that_the_contexts_show_is_left_out():
    rows = embedded_rows(num_users=1).to_list()
    mirrored = [
        {**row, **dict(zip(EMBED_COLUMNS, (row[EMBED_COLUMNS[1]], row[EMBED_COLUMNS[0]]), strict=True))}
        for row in rows[:4]
    ]
    joined = [{**row, "role": "context"} for row in rows[:8]] + [
        {**row, "role": "target"} for row in mirrored + rows[8:]
    ]
    evaluation = EvaluationTasks(PreferenceRows(Dataset.from_list(joined)), [0, 8], num_targets=20, seed=0)
    for task in map(evaluation.__getitem__, range(len(evaluation))):
        assert sorted(task.draw()[1]) == [12, 13, 14, 15]


@pytest.mark.parametrize(("role", "shown"), [(None, "nothing"), ("", "nothing"), ("Context", "'Context'"), (1, "1")])
def test_roles_that_say_nothing_are_refused(role, shown):
    with pytest.raises(ValueError, match=f"The column `role` holds .{shown}.. It may hold"):
        EvaluationTasks(PreferenceRows(embedded_rows(1).add_column("role", [role] * 12)), [0], num_targets=5, seed=0)


def test_a_training_set_may_have_another_column_called_role():
    rows = PreferenceRows(embedded_rows(2).add_column("role", ["annotator"] * 24))
    assert len(TrainingTasks(rows, SAMPLING, 0)) == 4


def test_users_with_few_pairs_have_the_contexts_that_are_left():
    rows = PreferenceRows(embedded_rows(1, pairs_per_user=7))
    sampling = TaskSampling(min_context=1, max_context=4, num_targets=5, context_in_target=False)
    assert sampling.required_pairs == 6 and sampling.max_context_of(9) == sampling.max_context_of(20) == 4
    drawn = [TrainingTask(rows, 0, (seed,), sampling).draw() for seed in range(20)]
    assert {len(context) for context, _ in drawn} == {1, 2} and all(len(targets) == 5 for _, targets in drawn)

import numpy as np
import pytest
from transformers import EvalPrediction

from np_trl import UserAccuracy, UserCalibration, UserNLL
from np_trl.metrics import num_context_curve


MARGINS, USERS = [1.0, -1.0, 2.0, 0.0, 3.0], [7, 7, 4, 4, 4]  # user 7: 1/2, user 4: 2.5/3


def test_accuracy_counts_users_equally_and_ties_half():
    result = UserAccuracy().compute(margins=MARGINS, users=USERS)
    accuracies = [0.5, 2.5 / 3]
    assert result["accuracy"] == pytest.approx(np.mean(accuracies))
    assert result["accuracy_se"] == pytest.approx(np.std(accuracies, ddof=1) / 2**0.5)
    assert result["worst_decile_accuracy"] == pytest.approx(0.5)


def test_the_worst_decile_is_the_mean_of_the_worst_tenth():
    users = np.arange(20)
    margins = np.where(users < 3, -1.0, 1.0)
    result = UserAccuracy().compute(margins=margins.tolist(), users=users.tolist())
    assert result["worst_decile_accuracy"] == 0.0 and result["accuracy"] == pytest.approx(0.85)


def test_nll_in_nats():
    result = UserNLL().compute(margins=[0.0, 0.0, np.log(3)], users=[0, 0, 1])
    assert result["nll"] == pytest.approx((np.log(2) + np.log(4 / 3)) / 2)


def test_calibration_error_is_the_gap_of_confidence_and_accuracy():
    confident = np.log(0.9 / 0.1)
    margins = [confident] * 7 + [-confident] * 3  # says 90 %, is right in 70 %
    assert UserCalibration().compute(margins=margins, users=[0] * 10)["ece"] == pytest.approx(0.2, abs=1e-6)
    assert UserCalibration().compute(margins=[confident] * 9 + [-confident], users=[0] * 10)["ece"] < 1e-6


def test_the_curve_has_the_metrics_of_every_number_of_contexts():
    margins = np.array([[1.0, 1.0], [-1.0, np.nan], [1.0, 1.0], [1.0, np.nan]])
    conditions, joint = np.array([[0, 0], [1, 0], [0, 10], [1, 10]]), np.array([-2.0, -1.0, -0.5, -0.1])
    metrics = num_context_curve(EvalPrediction((margins, joint, np.ones_like(margins, dtype=bool)), conditions))
    assert metrics["nc0_accuracy"] == 0.5 and metrics["nc10_accuracy"] == 1.0
    assert {key.split("_", 1)[1] for key in metrics} == {
        "accuracy",
        "accuracy_se",
        "worst_decile_accuracy",
        "nll",
        "joint_nll",
        "ece",
        "users",
        "gain",
        "gain_se",
    }
    assert metrics["nc10_gain"] == 0.5 and metrics["nc10_users"] == 2
    assert metrics["nc0_joint_nll"] == 1.5 and metrics["nc10_joint_nll"] == pytest.approx(0.3)


def test_the_gain_is_that_of_the_users_who_have_enough_pairs():
    margins = np.array([[1.0], [-1.0], [1.0], [1.0], [1.0]])
    conditions = np.array([[0, 0], [1, 0], [2, 0], [1, 20], [2, 20]])
    new_options = np.ones_like(margins, dtype=bool)
    metrics = num_context_curve(EvalPrediction((margins, -margins[:, 0], new_options), conditions))
    assert metrics["nc20_accuracy"] - metrics["nc0_accuracy"] == pytest.approx(1 / 3)
    assert metrics["nc20_gain"] == 0.5 and metrics["nc20_users"] == 2 and metrics["nc0_users"] == 3


def test_targets_with_options_of_the_context_are_told_apart():
    margins = np.array([[1.0, -1.0], [1.0, np.nan], [1.0, -1.0]])
    new_options = np.array([[False, True], [True, False], [True, True]])
    conditions = np.array([[0, 5], [1, 5], [2, 5]])
    metrics = num_context_curve(EvalPrediction((margins, margins[:, 0], new_options), conditions))
    assert metrics["nc5_accuracy"] == pytest.approx((0.5 + 1 + 0.5) / 3)
    assert metrics["nc5_new_options_accuracy"] == pytest.approx((0 + 1 + 0.5) / 3)
    assert metrics["nc5_new_options_accuracy_se"] == pytest.approx(np.std([0, 1, 0.5], ddof=1) / 3**0.5)


def test_groups_have_means_and_gains_of_their_own():
    margins = np.array([[-1.0], [1.0], [-1.0], [1.0], [1.0], [-1.0]])
    conditions = np.array([[0, 0], [1, 0], [2, 0], [0, 5], [1, 5], [2, 5]])
    prediction = EvalPrediction((margins, -margins[:, 0], np.ones_like(margins, dtype=bool)), conditions)
    metrics = num_context_curve(prediction, groups=["a", "a", "b"])
    assert metrics["nc0_a_accuracy"] == 0.5 and metrics["nc5_a_accuracy"] == 1.0
    assert metrics["nc5_a_gain"] == 0.5 and metrics["nc5_a_gain_se"] == pytest.approx(0.5)
    assert metrics["nc5_b_accuracy"] == metrics["nc5_worst_group_accuracy"] == 0.0
    assert "nc0_a_gain" not in metrics and "nc5_b_accuracy_se" not in metrics  # one user has no standard error


@pytest.mark.parametrize("group", ["shuffled", "new_options", "worst_group", "worst_decile"])
def test_groups_are_not_called_like_other_metrics(group):
    margins = np.array([[1.0], [-1.0]])
    prediction = EvalPrediction((margins, margins[:, 0], np.ones((2, 1), dtype=bool)), np.array([[0, 5], [1, 5]]))
    with pytest.raises(ValueError, match=rf"Groups are called \['{group}'\], .*`nc10_{group}_accuracy`. Rename"):
        num_context_curve(prediction, groups=["a", group])
    other = num_context_curve(prediction, groups=["a", f"{group}s"])
    assert len(other) == len(set(other)) and other[f"nc5_{group}s_accuracy"] == 0.0


@pytest.mark.parametrize(
    ("metric", "margin"), [(UserAccuracy, None), (UserNLL, float("-inf")), (UserCalibration, float("nan"))]
)
def test_what_is_no_prediction_is_not_counted_as_one(metric, margin):
    with pytest.raises(ValueError, match="1 of 2 `margins` are NaN or infinite"):
        metric().compute(margins=[1.0, margin], users=[0, 1])


def test_a_number_of_contexts_at_which_nobody_has_a_target_has_no_metrics():
    margins = np.array([[1.0], [np.nan]])
    prediction = EvalPrediction((margins, np.zeros(2), np.ones((2, 1), dtype=bool)), np.array([[0, 0], [0, 5]]))
    metrics = num_context_curve(prediction)
    assert metrics["nc0_users"] == 1 and not any(key.startswith("nc5") for key in metrics)

"""A run that fails, for whatever reason, resumes from its newest whole checkpoint, as if nothing had been."""

import json
import sys

import pytest

from .test_distributed import HERE, run


def report(*args) -> dict:
    return json.loads(run(sys.executable, HERE / "faults.py", *args).splitlines()[-1])


@pytest.mark.parametrize("case", ["reward", "lora"])
def test_runs_survive(case, tmp_path):
    results = report(tmp_path, case)
    print(results)
    killed = results["killed"]
    assert killed["survived"] == killed["kills"] == 20
    assert killed["reached"] > 0
    assert killed["while a checkpoint was written"] > 0
    assert "File too large" in results["full_disk"]["error"] and results["full_disk"]["newest"] == 4
    assert "KeyboardInterrupt" in results["interrupted"]["error"] and results["interrupted"]["newest"] == 4
    for result in results.values():
        assert result["equal"]  # bit-identical losses and weights


def test_runs_that_fail_once(tmp_path):
    results = report(tmp_path)
    print(results)
    not_finite, one_dies = results["not_finite"], results["one_dies"]
    assert "`chosen_embeds` of pair 0 in the context of user 25 holds NaN" in not_finite["error"]
    assert not_finite["newest"] == not_finite["told"] == 4
    assert one_dies["failed"] and one_dies["seconds"] < 60 and one_dies["newest"] == 4
    assert not_finite["equal"] and one_dies["equal"]

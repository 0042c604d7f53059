"""A run that fails, for whatever reason, resumes from its newest whole checkpoint, as if nothing had been."""

import json
import sys

from .test_distributed import HERE, run


def test_runs_survive(tmp_path):
    report = json.loads(run(sys.executable, HERE / "faults.py", tmp_path).splitlines()[-1])
    print(report)
    for case in ("reward", "lora"):
        results = report[case]
        assert results["killed"]["survived"] == results["killed"]["kills"] == 20
        assert results["killed"]["reached"] > 0
        assert "File too large" in results["full_disk"]["error"] and results["full_disk"]["newest"] == 4
        assert "KeyboardInterrupt" in results["interrupted"]["error"] and results["interrupted"]["newest"] == 4
        for result in results.values():
            assert result["equal"]  # bit-identical losses and weights
    assert sum(report[case]["killed"]["while a checkpoint was written"] for case in ("reward", "lora")) > 0
    not_finite, one_dies = report["not_finite"], report["one_dies"]
    assert "`chosen_embeds` of pair 0 in the context of user 25 holds NaN" in not_finite["error"]
    assert not_finite["newest"] == not_finite["told"] == 4
    assert one_dies["failed"] and one_dies["seconds"] < 60 and one_dies["newest"] == 4
    assert not_finite["equal"] and one_dies["equal"]

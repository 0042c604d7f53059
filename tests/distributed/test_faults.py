"""A run that is killed, interrupted or without room goes on from its newest whole checkpoint, as if nothing had been."""

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
            assert result["equal"]  # losses and weights, to the bit
    assert sum(report[case]["killed"]["while a checkpoint was written"] for case in report) > 0

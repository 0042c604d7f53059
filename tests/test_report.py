"""Reports of scripts."""

import json

import pytest

from np_trl.evaluation.report import save_report, summarize_runs
from np_trl.metrics.results import read_results, save_results


def test_runs_are_averaged_with_the_error_of_their_mean():
    runs = [{"accuracy": 0.5, "accuracy_se": 0.1, "only here": 1.0}, {"accuracy": 0.7, "accuracy_se": 0.3}]
    figures = summarize_runs(runs)
    assert figures == pytest.approx({"accuracy": 0.6, "accuracy_se": 0.2, "accuracy_se_over_seeds": 0.1})
    assert summarize_runs(runs[:1]) == runs[0]


def test_a_report_says_what_it_takes_to_measure_again(tmp_path):
    save_report(tmp_path / "new" / "report.json", {"ratio": 1.5}, seed=3)
    report = json.loads((tmp_path / "new" / "report.json").read_text())
    assert report["figures"] == {"ratio": 1.5} and report["seed"] == 3
    assert report["command"].startswith("python ") and {"torch", "trl"} <= report["versions"].keys()
    assert report["machine"].keys() == {"cpu", "threads", "gpu"}


def test_a_report_that_is_not_written_to_its_end_leaves_the_former_one(tmp_path, monkeypatch):
    save_report(tmp_path / "report.json", {"ratio": 1.5})

    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("np_trl.files.os.replace", stop)
    with pytest.raises(KeyboardInterrupt):
        save_report(tmp_path / "report.json", {"ratio": 2.5})
    assert json.loads((tmp_path / "report.json").read_text())["figures"] == {"ratio": 1.5}
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


@pytest.mark.parametrize("torn", ['{"eval_nll": 0.', "", "[]", b"\xff"])
def test_results_are_saved_where_there_is_a_torn_file(tmp_path, caplog, torn):
    save_results(tmp_path / "out", "train", {"train_loss": 1.0})
    save_results(tmp_path / "out", "eval", {"eval_nll": 0.5})
    assert read_results(tmp_path / "out" / "all_results.json") == {"train_loss": 1.0, "eval_nll": 0.5}
    for name in ("all", "eval"):
        (tmp_path / "out" / f"{name}_results.json").write_bytes(torn if isinstance(torn, bytes) else torn.encode())
    assert read_results(tmp_path / "out" / "eval_results.json") is None
    save_results(tmp_path / "out", "eval", {"eval_nll": 0.4})
    for name in ("all", "eval"):
        assert read_results(tmp_path / "out" / f"{name}_results.json") == {"eval_nll": 0.4}
    assert "all_results.json' was damaged" in caplog.text


def test_a_report_holds_no_token(tmp_path, monkeypatch):
    token = "hf_" + "aB3" * 10
    monkeypatch.setattr(
        "sys.argv", ["run.py", "--hub_token", "s3cret", "--hub-token=s3cret", "--other", token, "--seed", "1"]
    )
    save_report(tmp_path / "report.json", {})
    command = json.loads((tmp_path / "report.json").read_text())["command"]
    assert command == "python run.py --hub_token *** --hub-token=*** --other *** --seed 1"

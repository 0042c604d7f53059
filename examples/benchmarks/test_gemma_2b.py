"""The benchmark of gemma-2b, in tiny."""

import itertools

import gemma_2b
import pytest
import torch
from dpo_step import build_base, build_rows
from gemma_2b import SIZES, build, build_lora, find_peak, read_recipe, useful_operations
from torch.utils.flop_counter import FlopCounterMode


def test_the_benchmark_reports_the_median_step_after_the_warm_up(monkeypatch):
    """On a clock on which the steps of a run take these seconds: two to warm up, and one to report."""
    steps = itertools.cycle([100.0, 100.0, 3.0, 50.0, 50.0, 2.0])  # NP-DPO's run, then TRL's
    clock = itertools.chain.from_iterable((0.0, seconds) for seconds in steps)
    reports = {}
    monkeypatch.setattr(gemma_2b, "now", clock.__next__)
    monkeypatch.setattr(gemma_2b, "report", lambda name, figures, **facts: reports.update({name: (figures, facts)}))
    gemma_2b.main(["--size", "tiny", "--num_steps", "1", "--peak_tflops", "0.5"])
    figures, facts = reports["gemma_tiny"]
    assert facts["peak_tflops"] == 0.5 and figures["sequences a step"] == 18 and figures["tokens a sequence"] == 16
    size, tokens = SIZES["tiny"], 18 * 16
    for case in ("checkpointing, precomputed", "checkpointing", "plain, precomputed", "plain"):
        lora, precomputed = build_lora(read_recipe(size)), "precomputed" in case
        operations = useful_operations(size.config, lora, tokens, 18 * (size.completion + 1), precomputed)
        for name, seconds in (("NP-DPO", 3), ("TRL", 2)):
            assert figures[f"{case}: {name} tokens/s"] == tokens / seconds
            assert figures[f"{case}: {name} share of peak"] == pytest.approx(operations / seconds / 0.5e12)
        assert figures[f"{case}: time ratio"] == 1.5


@pytest.mark.parametrize("precomputed", [True, False])
def test_the_operations_are_those_of_a_step_that_torch_counts(tmp_path, precomputed):
    size = SIZES["tiny"]
    build_base(str(tmp_path), size.config)
    rows = build_rows(1, 9, size.prompt, size.completion, size.embed_size)
    options = {"gradient_checkpointing": False, "precompute_ref_log_probs": precomputed}
    trainer = build("trl", str(tmp_path), size, rows, **options)
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    trainer.model.enable_input_require_grads()  # else the first block saves the gradient of its input
    with FlopCounterMode(display=False) as counter:
        trainer.compute_loss(trainer.model, batch).backward()
    counts = counter.get_flop_counts()["Global"]
    counted = sum(counts.get(product, 0) for product in (torch.ops.aten.mm, torch.ops.aten.addmm))
    # On a CPU the fused head scores all tokens but the last. In the backward pass it scores them again, which is not useful
    # but counted; its gradient, an `addmm_`, is as large, useful and not counted.
    tokens, scored = batch["input_ids"].numel(), batch["input_ids"][:, 1:].numel()
    assert counted == useful_operations(size.config, build_lora(read_recipe(size)), tokens, scored, precomputed)


def test_without_a_gpu_it_says_so_and_an_unknown_chip_has_no_peak(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gemma_2b.main([])
    assert "gemma-2b needs a CUDA GPU" in capsys.readouterr().err
    assert find_peak("NVIDIA H100 80GB HBM3") == 989 and find_peak("NVIDIA L4") is None
    # the weights of gemma-2b without its embeddings, an adapter of rank 512 on q_proj and v_proj
    size = SIZES["2b"]
    lora = build_lora(read_recipe(size))
    assert useful_operations(size.config, lora, 1, 0, True) == 4 * 1_981_808_640 + 6 * 58_982_400

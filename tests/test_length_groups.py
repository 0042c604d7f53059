"""On a CPU neither padding nor scores of prompts are computed; losses and gradients are those of one padded batch."""

import pytest
import torch
import trl.trainer.utils
from peft import LoraConfig

from np_trl import NPDPOTrainer
from np_trl.trainer.length_groups import in_length_groups, scoring_completions_alone
from np_trl.trainer.trl_loss import PolicyLossMixin

from .testing_utils import dpo_config, style_rows, tiny_base, tiny_tokenizer


def build(path, **kwargs) -> NPDPOTrainer:
    torch.manual_seed(0)
    trainer = NPDPOTrainer(
        tiny_base(path / "base"),
        args=dpo_config(path / "out", per_device_train_batch_size=3, **kwargs),
        train_dataset=style_rows(8),
        eval_dataset=style_rows(8, seed=1),
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(target_modules=["q_proj"], layers_to_transform=[1, 2], task_type="CAUSAL_LM"),
    )
    for name, parameter in trainer.model.named_parameters():  # away from the start, where users change nothing
        if parameter.requires_grad and ("film" in name or "lora_B" in name):
            torch.nn.init.normal_(parameter, std=0.1)
    return trainer


def loss_and_gradients(trainer: NPDPOTrainer) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    torch.manual_seed(1)
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    found = {
        name: parameter.grad for name, parameter in trainer.model.named_parameters() if parameter.grad is not None
    }
    return loss.detach(), found


@pytest.mark.parametrize("loss_type", [["sigmoid"], ["sigmoid", "sft"], ["sppo_hard"]])
def test_losses_and_gradients_are_those_of_one_padded_batch(tmp_path, monkeypatch, loss_type):
    loss, gradients = loss_and_gradients(build(tmp_path, loss_type=loss_type))
    monkeypatch.setattr(PolicyLossMixin, "_runner", lambda self, model: model)
    expected, others = loss_and_gradients(build(tmp_path, loss_type=loss_type))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    assert gradients.keys() == others.keys() and len(gradients) > 5
    for name, gradient in others.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-3, atol=1e-6, msg=name)


def test_groups_are_cut_to_their_longest_row_and_come_back_in_order():
    seen = []

    def model(input_ids, attention_mask, context_index, shared):
        seen.append((input_ids.shape, attention_mask.sum(dim=1).tolist()))
        assert shared.shape == (2, 5)  # which is not of the rows
        values = (input_ids * context_index[:, None])[:, 1:].float()
        return trl.trainer.utils.FusedCausalLMOutput(log_probs=values, loss=values.sum())

    lengths = torch.tensor([4, 9, 2, 9, 3, 3, 7, 2, 5, 2])
    mask = (torch.arange(9) < lengths[:, None]).long()
    input_ids, users = torch.randint(1, 50, (10, 9)) * mask, torch.arange(1, 11)
    inputs = {"attention_mask": mask, "input_ids": input_ids, "context_index": users, "shared": torch.zeros(2, 5)}
    outputs = in_length_groups(model)(**inputs)
    torch.testing.assert_close(outputs.log_probs, (input_ids * users[:, None])[:, 1:].float())
    assert [shape[1] for shape, _ in seen] == [7, 9]
    assert outputs.loss is None  # of one group it would be wrong


def test_the_head_scores_completions_alone(tmp_path, monkeypatch):
    trainer, positions = build(tmp_path), []
    function = trl.trainer.utils._ChunkedLogProbFunction
    apply = function.apply

    def spy(hidden_states, *args):
        positions.append(len(hidden_states))
        return apply(hidden_states, *args)

    monkeypatch.setattr(function, "apply", spy)
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.compute_loss(trainer.model, batch)
    assert sum(positions) == 2 * batch["completion_mask"].sum()  # policy and reference


def test_what_trl_asks_of_its_device_is_put_back():
    before = trl.trainer.utils._use_triton
    with pytest.raises(KeyError), scoring_completions_alone(torch.device("cpu")):
        assert trl.trainer.utils._use_triton(torch.device("cpu"))
        raise KeyError
    assert trl.trainer.utils._use_triton is before
    with scoring_completions_alone(torch.device("meta")):
        assert trl.trainer.utils._use_triton is before

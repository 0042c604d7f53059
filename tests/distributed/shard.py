"""
Shard a policy and a reward model over processes with FSDP2, and compare loss and gradients with those of whole ones.

Accelerate turns FSDP on for accelerators alone, so on CPUs this is torch's own `fully_shard`, layer by layer as
accelerate does it.
"""

import os
import sys

import torch
from torch.distributed import DeviceMesh, init_process_group
from torch.distributed.fsdp import fully_shard

from tests.testing_utils import leave_processes, tiny_policy, tiny_reward_model, toy_context


def shard(model, layers, mesh):
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def compare(name: str, whole, sharded, loss, rank: int, num_processes: int) -> None:
    """Compare the mean of `loss(model, part)` over the parts, and its gradients, with that of sharded processes."""
    expected = torch.stack([loss(whole, part) for part in range(num_processes)]).mean()
    expected.backward()
    actual = loss(sharded, rank)
    actual.backward()
    torch.distributed.all_reduce(actual := actual.detach() / num_processes)
    torch.testing.assert_close(actual, expected.detach(), rtol=1e-5, atol=1e-5)
    gradients = {key: parameter.grad for key, parameter in sharded.named_parameters()}
    compared = 0
    for key, parameter in whole.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(
                gradients[key].full_tensor(),
                parameter.grad,
                rtol=1e-4,
                atol=1e-5,
                msg=lambda text, key=key: f"{key}: {text}",
            )
            compared += 1
    print(f"{name}: {compared} gradients", flush=True)


def main(folder: str) -> None:
    # built before there are processes to share them: each saves and loads a base of its own
    policies = [tiny_policy(f"{folder}/{os.environ['RANK']}") for _ in range(2)]
    rewards = [tiny_reward_model(embed_size=32) for _ in range(2)]
    init_process_group("gloo")
    rank, num_processes = torch.distributed.get_rank(), torch.distributed.get_world_size()
    mesh = DeviceMesh("cpu", list(range(num_processes)))
    tokens = torch.randint(3, 500, (num_processes, 6, 7), generator=torch.Generator().manual_seed(0))
    context, mask = toy_context(users=3, pairs=5, embed_size=32)
    index = torch.arange(6) // 2

    def policy_loss(model, part):
        users = {"context_embeds": context, "context_mask": mask, "context_index": index}
        return model(tokens[part], labels=tokens[part], **users).loss

    whole, policy = policies
    compare("policy", whole, shard(policy, policy.model.layers, mesh), policy_loss, rank, num_processes)

    options = torch.randn(num_processes, 6, 32, generator=torch.Generator().manual_seed(1))

    def reward_loss(model, part):
        return (
            model(options[part], context_embeds=context, context_mask=mask, context_index=index).logits.square().mean()
        )

    whole, reward = rewards
    compare("reward", whole, shard(reward, [], mesh), reward_loss, rank, num_processes)
    leave_processes()


if __name__ == "__main__":
    main(sys.argv[1])

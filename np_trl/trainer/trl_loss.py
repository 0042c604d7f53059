"""
Everything that our trainers do around TRL's loss.

Both hook at the same height, [`~transformers.Trainer.compute_loss`], the hook that TRL documents: they call TRL's own with a
forward in place of the model, which keeps the log-odds that the metrics of users need ([`LossRecord`]) and, for a reward
model, brings what TRL knows nothing of (latents, heads) into the rewards that it compares.

The private names of libraries that np_trl touches, and why. `tests/test_trl_loss.py` fails when one moves, or is missing here.

trl
    DPOTrainer._prepare_dataset                          override: check rows of users first, and tokenise rows that are tasks
    RewardTrainer._prepare_dataset                       override: options come embedded
    DPOTrainer._precompute_ref_logps                     override: processes share datasets in memory
    DPOTrainer._precompute_model_hash                    set: cached log-probs are those of the same lengths, too
    DPOTrainer._metrics                                  set aside, so that the control's figures do not enter TRL's
    _BaseTrainer._name                                   set: the method that cards name
    _BaseTrainer._paper                                  set: the paper that cards cite
    _BaseTrainer._tag_names                              set: tags of models on the Hub
    utils._use_triton                                    set: on CPUs, too, the head scores completions alone

transformers
    Trainer._get_dataloader                              override: rows become tasks
    Trainer._get_train_sampler                           override: tasks come shuffled, by their epoch
    Trainer._set_signature_columns_if_needed             override: keep the columns of rows that are tasks
    Trainer._signature_columns                           added to by that override
    Trainer._prepare_inputs                              called: a batch moves to where the model is
    Trainer._get_output_dir                              called: where a checkpoint is written
    Trainer._save_checkpoint                             override: a checkpoint is sealed when it is complete
    Trainer._init_training_state                         override: streams resume at their pass, and a finished run stays finished
    Trainer._load_best_model                             override: the best checkpoint must be whole, and of this run
    Trainer._save                                        override: a card beside every model, and no code but ours
    Trainer._push_from_checkpoint                        override: upload by a list of files, not the folder
    Trainer._finish_current_push                         called: wait for uploads before the last one
    PreTrainedModel._init_weights                        override: the context encoder and FiLM start by themselves
    PreTrainedModel._load_pretrained_model               override: files are checked before weights are read
    PreTrainedModel._keep_in_fp32_modules                set: quantisers leave the context encoder and FiLM alone
    PreTrainedModel._keep_in_fp32_modules_strict         set: they stay float32 on a base of bfloat16
    PreTrainedModel._no_split_modules                    set: decoder layers stay whole on a device
    PreTrainedConfig._attn_implementation                read: the reference policy gets the attention of the policy
    GenerationMixin._get_candidate_generator             override: an assistant model drafts without the user

peft
    PeftModel._enable_peft_forward_hooks                 override: adapters for single rows are refused
    ModulesToSaveWrapper._forward_wrapped_passthrough    override: an adapter without FiLM refuses users

datasets
    Dataset._fingerprint                                 read: which datasets were checked and prepared already

torch
    MultiheadAttention._reset_parameters                 called: attention pooling starts as torch does
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property

import torch
from datasets import IterableDataset
from peft import PeftModel

from np_trl.data import EvaluationTasks
from np_trl.data.contextual_collator import pad_pairs
from np_trl.models import NPRewardModel
from np_trl.models.modeling_np_reward import NPRewardOutput
from np_trl.trainer.latent_objectives import (
    joint_log_likelihood,
    latent_loss,
    mean_log_likelihood,
    predictive_margins,
    target_sets,
)
from np_trl.trainer.length_groups import in_length_groups, scoring_completions_alone
from np_trl.trainer.reference_log_probs import ReferenceLogProbs
from np_trl.trainer.trunk import SharedTrunk


# tensors of a batch that are for the metrics, not for the model
_FOR_METRICS = ("conditions", "new_options")
_CONTEXT_KEYS = ("context_embeds", "context_mask", "context_index")


@dataclass
class LossRecord:
    """
    The pairs and log-odds of one loss, of a batch of P target pairs.

    Args:
        num_pairs (`int`):
            P, without pairs that were repeated so that all processes have as many.
        rows (`torch.LongTensor` of shape `(P,)`, *optional*):
            Rows of the pairs in the set that is evaluated, with the repeated ones; none in training.
        margins (`torch.Tensor` of shape `(P,)`, *optional*):
            Log-odds of each chosen option, detached.
        joint (`torch.Tensor` of shape `(U,)`, *optional*):
            Log-likelihood of each user's targets together, where they are not independent given the margins.
    """

    num_pairs: int
    rows: torch.LongTensor | None = None
    margins: torch.Tensor | None = None
    joint: torch.Tensor | None = None

    def keep(self, margins: torch.Tensor) -> None:
        """Keep the margins of the pairs, `(P, ...)`, but not of the repeated ones."""
        self.margins = margins.detach()[: self.num_pairs]


class PairLossMixin:
    """Mix into a TRL trainer of preference pairs."""

    # of the last batch
    record: LossRecord | None = None

    def _begin_record(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """
        Begin the record of a batch, and return what of it is for the model.

        TRL gathers a figure of every pair, for which all processes must have the same number of them. In training they have,
        unless tasks are streamed; in an evaluation users have what they have, so that some pairs are repeated.
        """
        inputs = {key: value for key, value in inputs.items() if key not in _FOR_METRICS}
        num_pairs = len(inputs["context_index"]) // 2
        may_differ = not self.model.training or isinstance(self.train_dataset, IterableDataset)
        if self.accelerator.num_processes > 1 and may_differ:
            sizes = self.accelerator.gather(torch.tensor([num_pairs], device=self.accelerator.device))
            if self.model.training and sizes.unique().numel() > 1:
                raise ValueError(
                    f"The tasks of one training step have {sizes.tolist()} target pairs in the processes, and their losses "
                    "would not count alike. Give every task of the streamed training set the same number of targets."
                )
            inputs = pad_pairs(inputs, int(sizes.max()))
        self.record = LossRecord(num_pairs, inputs.pop("target_rows", None))
        return inputs


class PolicyLossMixin(PairLossMixin):
    """Mix into a policy's trainer, before [`~trl.DPOTrainer`]: the policy sees the contexts, the reference policy does not."""

    # of the set that is evaluated; none in training
    _references: ReferenceLogProbs | None = None

    # Override: the reference never sees a context, so its log-probs come from TRL's own function, without one.
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs, trunk = self._begin_record(inputs), self._shared_trunk
        with nullcontext() if trunk is None else trunk.step():
            if "ref_chosen_logps" not in inputs:
                chosen, rejected = self._reference_log_probs(model, inputs)
                inputs = {**inputs, "ref_chosen_logps": chosen, "ref_rejected_logps": rejected}

            run = self._runner(model)

            def forward(**kwargs):
                outputs = run(**kwargs)
                self.record.keep(self._implicit_rewards(outputs.log_probs.detach(), inputs))
                return outputs

            with self._with_precomputed_references(), scoring_completions_alone(self.accelerator.device):
                return super().compute_loss(forward, inputs, return_outputs, num_items_in_batch)

    def _runner(self, model) -> Callable:
        """
        What runs the model: past a trunk that is shared, and in length groups where one process runs on a CPU, and has no loss
        of experts.
        """
        run = model if self._shared_trunk is None else self._shared_trunk.run(model)
        return in_length_groups(run) if self._is_alone_on_cpu and not self.aux_loss_enabled else run

    # Override: on a CPU little padding and no scores of prompts are computed.
    def compute_ref_log_probs(self, model, inputs):
        with scoring_completions_alone(self.accelerator.device):
            return super().compute_ref_log_probs(self._runner(model), inputs)

    @cached_property
    def _shared_trunk(self) -> SharedTrunk | None:
        """The trunk, where policy and reference policy have the same and no process holds a part of it alone."""
        model = self.accelerator.unwrap_model(self.model)
        is_sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        if self.ref_model is not None or not isinstance(model, PeftModel) or is_sharded:
            return None
        base = model.get_base_model()
        return SharedTrunk(base) if SharedTrunk.exists(base) else None

    @property
    def _kept_trunk(self) -> SharedTrunk | None:
        """The trunk whose hidden states are kept for the run: where one process runs on a CPU, and all of them come by it."""
        return self._shared_trunk if self._is_alone_on_cpu else None

    @property
    def _is_alone_on_cpu(self) -> bool:
        return self.accelerator.num_processes == 1 and self.accelerator.device.type == "cpu"

    def _implicit_rewards(self, log_probs: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Differences of implicit rewards (eq. 8) `(P,)` from the log-probs of the completions' tokens `(2P, T - 1)`."""
        if self.ld_alpha is not None:
            log_probs = log_probs * _length_weights(inputs["completion_mask"][:, 1:], self.ld_alpha)
        chosen, rejected = log_probs.sum(dim=1).chunk(2)
        return self.beta * ((chosen - inputs["ref_chosen_logps"]) - (rejected - inputs["ref_rejected_logps"]))

    @contextmanager
    def _with_precomputed_references(self) -> Iterator[None]:
        """Have TRL's loss read the reference log-probs of the batch."""
        precomputed, self.precompute_ref_logps = self.precompute_ref_logps, True
        try:
            yield
        finally:
            self.precompute_ref_logps = precomputed

    def _reference_log_probs(self, model, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Those of the chosen and the rejected completions, `(P,)`; in an evaluation computed once for every pair."""
        plain = {key: value for key, value in inputs.items() if key not in _CONTEXT_KEYS}
        reference = model if self.ref_model is None else self.ref_model
        if self._references is None:
            return self.compute_ref_log_probs(reference, plain)
        found = self._references.find(self.record.rows)
        is_missing = torch.tensor([found is None], device=self.accelerator.device)
        if self.accelerator.gather(is_missing).any():  # where weights are sharded, all processes compute or none
            chosen, rejected = self.compute_ref_log_probs(reference, plain)
            self._references.add(*self.accelerator.gather((self.record.rows, chosen, rejected)))
            return chosen, rejected
        return tuple(found.to(self.accelerator.device))

    # Override: in an evaluation of users, the reference log-probs of every pair are computed once.
    def evaluation_loop(self, dataloader, *args, **kwargs):
        if not isinstance(dataloader.dataset, EvaluationTasks):
            return super().evaluation_loop(dataloader, *args, **kwargs)
        self._references = ReferenceLogProbs(len(dataloader.dataset.rows.dataset))
        try:
            return super().evaluation_loop(dataloader, *args, **kwargs)
        finally:
            self._references = None


class RewardLossMixin(PairLossMixin):
    """Mix into a reward model's trainer, before [`~trl.RewardTrainer`]."""

    # Override: the loss is TRL's, of the log-odds that the model's head gives to each choice; with Gaussian latents, of
    # the log-odds of its mean probability, and in training the objective that was named.
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = self._begin_record(inputs)
        reward_model = self.accelerator.unwrap_model(model)
        gaussian, objective = reward_model.has_gaussian_latents, None
        if gaussian:
            inputs = {**inputs, **self._latent_inputs(reward_model, inputs)}

        def forward(**kwargs):
            nonlocal objective
            outputs = model(**kwargs)
            margins = reward_model.choice_logits(outputs)  # (P,) or (S, P)
            if gaussian:
                objective = self._latent_objective(reward_model, inputs, outputs, margins)
                margins, outputs.logits = predictive_margins(margins), outputs.logits.mean(dim=0)
            chosen, rejected = outputs.logits.squeeze(-1).chunk(2)
            correction = (margins - (chosen - rejected)) / 2  # zero for a Bradley-Terry head
            outputs.logits = outputs.logits + torch.cat([correction, -correction]).unsqueeze(-1)
            self.record.keep(margins)
            return outputs

        loss, outputs = super().compute_loss(forward, inputs, True, num_items_in_batch)
        if gaussian and self.model.training:
            loss = objective
        return (loss, outputs) if return_outputs else loss

    def _latent_inputs(self, model: NPRewardModel, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Draw noise for samples of the latents, the same for all users of an evaluation; lay out target sets."""
        embeds, latent_size = inputs["context_embeds"], model.config.context_config.latent_size
        if not self.model.training:
            noise = evaluation_noise(self.args.task_seed, self.args.eval_num_latent_samples, latent_size)
            return {"latent_noise": noise.to(embeds.device)}
        noise = torch.randn(self.args.num_latent_samples, len(embeds), latent_size, device=embeds.device)
        sets = target_sets(inputs, self.args.context_in_target) if self.args.latent_objective == "elbo" else {}
        return {"latent_noise": noise, **sets}

    def _latent_objective(self, model: NPRewardModel, inputs, outputs: NPRewardOutput, margins: torch.Tensor):
        """The loss in training, from margins `(S, P)`; and, on the way, the joint log-likelihoods of the record."""
        users = inputs["context_index"][: self.record.num_pairs]  # (P,)
        num_users = len(inputs["context_mask"])
        log_likelihood = joint_log_likelihood(margins[:, : self.record.num_pairs], users, num_users)  # (S, U)
        self.record.joint = mean_log_likelihood(log_likelihood).detach()
        if not self.model.training:
            return None
        return latent_loss(
            self.args.latent_objective,
            log_likelihood,
            outputs,
            torch.bincount(users, minlength=num_users),
            model.config.context_config.memory_size,
            self.args.kl_weight,
        )


def evaluation_noise(seed: int, num_samples: int, latent_size: int) -> torch.Tensor:
    """Draw standard normal noise `(S, 1, Z)`, one draw for all users of an evaluation, by its seed."""
    return torch.randn(num_samples, 1, latent_size, generator=torch.Generator().manual_seed(seed))


def _length_weights(completion_mask: torch.Tensor, ld_alpha: float) -> torch.Tensor:
    """Weight `ld_alpha` where a completion is longer than the other of its pair, else 1 (LD-DPO), `(2P, T)`."""
    shared = torch.stack(completion_mask.sum(dim=1).chunk(2)).amin(dim=0).repeat(2)  # (2P,)
    return torch.where(completion_mask.cumsum(dim=1) > shared.unsqueeze(1), ld_alpha, 1.0)

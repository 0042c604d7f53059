"""Evaluation of a policy on users, by its implicit reward (eq. 8)."""

import torch
from accelerate import Accelerator
from datasets import Dataset
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase
from trl import maybe_extract_prompt
from trl.trainer.dpo_trainer import DataCollatorForPreference

from np_trl.data import ContextualCollator, EvaluationProtocol, PreferenceRows, TokenTargets
from np_trl.data.embedding_columns import EMBED_COLUMNS
from np_trl.data.user_selection import UserSelection
from np_trl.data.validation import check_embeddings
from np_trl.evaluation.user_evaluation import UserEvaluation
from np_trl.models.completion_log_probs import TOKENS, completion_log_probs
from np_trl.models.text_context import check_end_token, tokenize_pair
from np_trl.models.texts import SIDES
from np_trl.trainer import NPDPOTrainer
from np_trl.trainer.reference_log_probs import ReferenceLogProbs
from np_trl.trainer.token_ties import drop_token_ties
from np_trl.trainer.trl_loss import LossRecord
from np_trl.trainer.trunk import embed_with_trunk
from np_trl.users.reference import reference_policy


class PolicyEvaluation(UserEvaluation):
    """
    A policy, its reference policy, and the users of an evaluation. `beta` and the lengths are those of the policy's config.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The policy.
        reference (`nn.Module`):
            The reference policy.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The policy's tokenizer.
        rows ([`PreferenceRows`]):
            Tokenised and embedded pairs.
        protocol ([`EvaluationProtocol`]):
            How users are evaluated.
        kwargs:
            Passed to [`UserEvaluation`].
    """

    def __init__(
        self,
        model: nn.Module,
        reference: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        rows: PreferenceRows,
        protocol: EvaluationProtocol,
        **kwargs,
    ):
        self.reference, self.tokenizer = reference.eval(), tokenizer
        self._references = ReferenceLogProbs(len(rows.dataset))
        collator = ContextualCollator(TokenTargets(preference_collator(model, tokenizer)))
        super().__init__(model, rows, protocol, collator, **kwargs)

    @classmethod
    def of_users(
        cls,
        model: nn.Module,
        users: Dataset,
        protocol: EvaluationProtocol,
        selection: UserSelection,
        batch_size: int,
        accelerator: Accelerator,
        tokenizer: PreTrainedTokenizerBase,
        reference: nn.Module | None = None,
    ) -> "PolicyEvaluation":
        """
        Check, tokenise and embed the pairs of users as in training, and evaluate a policy on them.

        Raises:
            `ValueError`: if the policy is a merged one and has no reference policy, or needs embeddings that are not there.
        """
        reference = _load_reference(model) if reference is None else reference
        with accelerator.main_process_first():
            users = _tokenize(model, users, tokenizer, selection)
        users = _embed(model, users, tokenizer, batch_size, accelerator)
        lengths = (model.config.context_max_length, model.config.context_truncation)
        settings = {"batch_size": batch_size, "accelerator": accelerator}
        return cls(model, reference, tokenizer, PreferenceRows(users, *lengths), protocol, **settings)

    @classmethod
    def of_trainer(cls, trainer: NPDPOTrainer) -> "PolicyEvaluation":
        """
        The policy and the evaluation set of a trainer.

        Raises:
            `ValueError`: if its reference policy is gone.
        """
        model, reference = trainer.accelerator.unwrap_model(trainer.model), trainer.ref_model
        if reference is None and not isinstance(model, PeftModel):
            raise ValueError(
                "The reference policy of this run is gone: its log-probs were computed before training. Evaluate the saved "
                "policy with `np-trl evaluate --ref_model_name_or_path`, or train without `precompute_ref_log_probs`."
            )
        reference = reference_policy(model) if reference is None else reference
        rows, protocol = PreferenceRows(trainer.eval_dataset), trainer.args.evaluation_protocol
        settings = {"batch_size": trainer.args.eval_batch_size, "accelerator": trainer.accelerator}
        return cls(model, reference, trainer.processing_class, rows, protocol, **settings)

    def predict(self, batch: dict[str, torch.Tensor]) -> LossRecord:
        tokens = {name: batch[name] for name in TOKENS}
        latents = self.model.infer_latents(batch["context_embeds"], batch["context_mask"])  # (U, Z)
        chosen, rejected = completion_log_probs(self.model, tokens, latents[batch["context_index"]]).chunk(2)
        ref_chosen, ref_rejected = self._reference_log_probs(tokens, batch["target_rows"])
        record = LossRecord(len(chosen), batch["target_rows"])
        record.keep(self.model.config.dpo_beta * ((chosen - ref_chosen) - (rejected - ref_rejected)))
        return record

    def _reference_log_probs(self, tokens: dict[str, torch.Tensor], rows: torch.LongTensor) -> torch.Tensor:
        """Those of the chosen and the rejected completions, `(2, P)`, computed once for every pair."""
        found = self._references.find(rows)
        if found is None:
            self._references.add(rows, *completion_log_probs(self.reference, tokens).chunk(2))
            found = self._references.find(rows)
        return found.to(rows.device)


def _load_reference(model: nn.Module) -> nn.Module:
    """The reference policy of a policy: that of its adapter, or that which a merged policy names in its configuration."""
    if isinstance(model, PeftModel):
        return reference_policy(model)
    name, revision = model.config.reference_name_or_path, model.config.reference_revision
    if name is None:
        raise ValueError(
            f"{model.config.name_or_path!r} is a merged policy, whose implicit reward needs the reference policy, and it names "
            "none. Pass its base model as `reference` (`--ref_model_name_or_path`)."
        )
    return AutoModelForCausalLM.from_pretrained(name, revision=revision, dtype=model.dtype).to(model.device)


def preference_collator(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> DataCollatorForPreference:
    """TRL's collator of tokenised pairs, which truncates as in the policy's training."""
    pad_token_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    lengths = {"max_length": model.config.context_max_length, "truncation_mode": model.config.context_truncation}
    return DataCollatorForPreference(pad_token_id=pad_token_id, **lengths)


def _tokenize(model, users: Dataset, tokenizer, selection: UserSelection) -> Dataset:
    """Check pairs and tokenise them, and leave out those that are ties in tokens."""
    if "prompt" not in users.column_names:
        users = users.map(maybe_extract_prompt, desc="Extracting the prompts")
    if model.config.context_source == "trunk":  # which embeds them again
        users = users.remove_columns([name for name in EMBED_COLUMNS if name in users.column_names])
    else:
        check_embeddings(users, "eval", model.config.context_config.embed_size)
    users, _ = selection.select(users, "eval", SIDES)
    if isinstance(users[0]["chosen"], str):
        check_end_token(tokenizer)
    tokenized = users.map(_tokenize_row, fn_kwargs={"tokenizer": tokenizer}, desc="Tokenising the pairs")
    lengths = (model.config.context_max_length, model.config.context_truncation)
    return selection.select_by_counts(drop_token_ties(tokenized, *lengths, selection.drop_ties, "eval"), "eval")


def _tokenize_row(row: dict, tokenizer) -> dict[str, list[int]]:
    start, chosen, rejected = tokenize_pair(row, tokenizer)
    return {"prompt_ids": chosen[:start], "chosen_ids": chosen[start:], "rejected_ids": rejected[start:]}


def _embed(model, users: Dataset, tokenizer, batch_size: int, accelerator: Accelerator) -> Dataset:
    if model.config.context_source != "trunk":
        return users
    embeds = embed_with_trunk(model, users, preference_collator(model, tokenizer), accelerator, batch_size, "eval")
    for side, column in enumerate(EMBED_COLUMNS):
        users = users.add_column(column, list(embeds[:, side].numpy()))
    return users

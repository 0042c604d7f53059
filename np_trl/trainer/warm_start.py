"""The warm start of a policy: its context encoder begins as that of an NP-BTL reward model of the same choices."""

import logging

from datasets import Dataset

from np_trl.data import PreferenceRows
from np_trl.models import NPRewardModel, NPRewardModelConfig
from np_trl.trainer.np_reward_config import NPRewardConfig
from np_trl.trainer.np_reward_trainer import NPRewardTrainer
from np_trl.trainer.policy import np_parameters


logger = logging.getLogger(__name__)

REWARD_STEPS = 400  # if `reward_steps` is not set


class WarmStartMixin:
    """
    Mix into a policy's trainer with `load_context_encoder`.

    Attributes:
        reward_metrics (`dict[str, float]`): the evaluation of the reward model, `eval_reward_nc{N}_accuracy` and the like. Empty
            where the run resumes, or has no evaluation set or several.
    """

    reward_metrics: dict = {}

    # Override: the reward model is trained first, unless the run resumes or the policy has been trained.
    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        if not resume_from_checkpoint and (steps := self._reward_steps()):
            self.reward_metrics = self._train_reward_model(steps)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _reward_steps(self) -> int:
        """How long the reward model is trained."""
        args, film = self.args, [value for name, value in np_parameters(self.model).items() if ".film." in name]
        if args.reward_steps is None:
            is_whole = not (self.is_deepspeed_enabled or self.is_fsdp_enabled)
            is_possible = is_whole and isinstance(self.train_dataset, Dataset) and args.context_encoder_path is None
        else:
            is_possible = bool(args.reward_steps)
        if not is_possible:
            return 0
        if any(parameter.any() for parameter in film):  # which start at zero
            if args.reward_steps is not None:
                logger.warning("The policy has been trained, so `reward_steps=%d` is left out.", args.reward_steps)
            return 0
        return REWARD_STEPS if args.reward_steps is None else args.reward_steps

    def _train_reward_model(self, steps: int) -> dict[str, float]:
        """Train NP-BTL on the embeddings of the policy's options, and start from its context encoder."""
        if not isinstance(self.train_dataset, Dataset):
            raise ValueError(
                f"`reward_steps={steps}` trains a reward model on the users' pairs, but `train_dataset` is a "
                "stream of tasks. Train it by itself with `NPRewardTrainer`, and pass its folder as `context_encoder_path`."
            )
        args = self._reward_config(steps)
        context_config = self.accelerator.unwrap_model(self.model).config.context_config
        model = NPRewardModel(
            NPRewardModelConfig(
                embed_size=context_config.embed_size,
                hidden_size=context_config.hidden_size,
                context_config=context_config.to_diff_dict(),
            )
        )
        eval_dataset = self.eval_dataset if isinstance(self.eval_dataset, Dataset) else None
        trainer = NPRewardTrainer(model, args=args, train_dataset=self.train_dataset, eval_dataset=eval_dataset)
        self.accelerator.print(
            f"Training the reward model that the context encoder starts from: {args.max_steps} steps."
        )
        trainer.train()
        trainer.save_model()
        self.accelerator.wait_for_everyone()
        self.load_context_encoder(args.output_dir)
        return {} if eval_dataset is None else trainer.evaluate(metric_key_prefix="eval_reward")

    def _reward_config(self, steps: int) -> NPRewardConfig:
        args, num_pairs = self.args, int(PreferenceRows(self.train_dataset).counts.min())
        num_targets = min(5, num_pairs)
        return NPRewardConfig(
            output_dir=f"{args.output_dir}/np_reward",
            max_steps=steps,
            warmup_steps=steps // 10,
            lr_scheduler_type="cosine",
            learning_rate=args.reward_learning_rate,
            num_targets=num_targets,
            max_context=min(max(args.eval_num_contexts), num_pairs - num_targets),  # so that nobody has too few pairs
            context_in_target=False,
            **args.evaluation_protocol.as_arguments(),
            drop_short_users=True,
            bf16=args.bf16,  # one setting for the process: another would change that of the policy
            fp16=args.fp16,
            use_cpu=args.use_cpu,
            save_strategy="no",
            report_to="none",
            logging_steps=100,
            seed=args.seed,
            data_seed=args.data_seed,
        )

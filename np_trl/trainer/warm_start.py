"""The warm start of a policy: its context encoder begins as that of an NP-BTL reward model of the same choices."""

import logging

from datasets import Dataset

from np_trl.data import PreferenceRows
from np_trl.models import NPRewardModel, NPRewardModelConfig
from np_trl.trainer.np_reward_config import NPRewardConfig
from np_trl.trainer.np_reward_trainer import NPRewardTrainer
from np_trl.trainer.policy import np_parameters


logger = logging.getLogger(__name__)


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
        if self.args.reward_steps and not resume_from_checkpoint:
            film = [parameter for name, parameter in np_parameters(self.model).items() if ".film." in name]
            if any(parameter.any() for parameter in film):  # which start at zero
                logger.warning(
                    "The policy has been trained, so `reward_steps=%d` is left out.", self.args.reward_steps
                )
            else:
                self.reward_metrics = self._train_reward_model()
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _train_reward_model(self) -> dict[str, float]:
        """Train NP-BTL on the embeddings of the policy's options, and start from its context encoder."""
        if not isinstance(self.train_dataset, Dataset):
            raise ValueError(
                f"`reward_steps={self.args.reward_steps}` trains a reward model on the users' pairs, but `train_dataset` is a "
                "stream of tasks. Train it by itself with `NPRewardTrainer`, and pass its folder as `context_encoder_path`."
            )
        args, context_config = self._reward_config(), self.accelerator.unwrap_model(self.model).config.context_config
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

    def _reward_config(self) -> NPRewardConfig:
        args, num_pairs = self.args, int(PreferenceRows(self.train_dataset).counts.min())
        num_targets = min(5, num_pairs)
        return NPRewardConfig(
            output_dir=f"{args.output_dir}/np_reward",
            max_steps=args.reward_steps,
            warmup_steps=args.reward_steps // 10,
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

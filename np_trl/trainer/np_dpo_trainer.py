"""NP-DPO (eq. 8 and 24 of the paper) on TRL's DPO trainer."""

import logging
from pathlib import Path

from datasets import Dataset, IterableDataset
from huggingface_hub import HfApi
from peft import PeftConfig, PeftModel
from torch import nn
from transformers import AutoModel, PreTrainedModel
from trl import DPOTrainer
from trl.models import unwrap_model_for_generation

from np_trl.data import ContextualCollator, TokenTargets
from np_trl.data.preference_rows import EMBED_COLUMNS
from np_trl.data.validation import check_embeddings
from np_trl.models import ContextEncoder
from np_trl.models.checkpoint_format import tokenizer_without_code
from np_trl.models.configuration_film import FILM_FIELDS
from np_trl.models.weights import read_path
from np_trl.trainer.adapter_loading import is_adapter
from np_trl.trainer.contextual_trainer import ContextualTrainerMixin
from np_trl.trainer.film_adapter import FiLMPeftModel
from np_trl.trainer.film_units import set_film_units
from np_trl.trainer.model_card import describe_context_encoder, public_name
from np_trl.trainer.np_dpo_config import NPDPOConfig
from np_trl.trainer.policy import np_parameters, upcast_np_parameters
from np_trl.trainer.policy_source import PolicySource, used_init_kwargs
from np_trl.trainer.policy_start import PolicyStart, check_output_dir
from np_trl.trainer.sharing_trainer import copy_to_cpu, whole_model
from np_trl.trainer.tokenizing_trainer import TokenizingTrainerMixin
from np_trl.trainer.trl_loss import PolicyLossMixin
from np_trl.trainer.trunk import check_trunk, embed_with_trunk, freeze_trunk
from np_trl.trainer.uploads import files_to_share, upload
from np_trl.trainer.warm_start import WarmStartMixin
from np_trl.weight_identity import base_of, hash_base_weights


logger = logging.getLogger(__name__)


_LONG_FIELDS = ("context_config", "film_units")  # which the card describes in other words, or leaves out


class NPDPOTrainer(WarmStartMixin, PolicyLossMixin, TokenizingTrainerMixin, ContextualTrainerMixin, DPOTrainer):
    """
    Train one policy that writes for each user, from the choices of many.

    The policy sees the user's context set, the reference policy never does. Loss types, metrics, PEFT, precomputed
    reference log-probs and callbacks are those of [`~trl.DPOTrainer`].

    Args:
        model (`str`, `os.PathLike`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The path of a plain base model or of a policy, or a causal LM with FiLM. Of a path come the policy, the reference
            policy and, without `processing_class`, the tokenizer, all as `args.model_init_kwargs` says.
        ref_model ([`~transformers.PreTrainedModel`], *optional*):
            The reference policy; a plain model will do. Not needed with `peft_config`.
        args ([`NPDPOConfig`], *optional*):
            Training arguments.
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Preference pairs with `user_id`, in any of TRL's formats. Without the columns `chosen_embeds` and
            `rejected_embeds` the trunk of the policy embeds the options. Iterable: tasks with `user_id`, `context` and
            `target`, lists of pairs whose contexts have the embedding columns.
        eval_dataset ([`~datasets.Dataset`] or `dict`, *optional*):
            The same, of other users. Evaluated at every N_C of `eval_num_contexts`, on pairs that are not in the context.
        compute_metrics (`Callable`, *optional*):
            Further metrics, of margins and conditions as in [`num_context_curve`].
        quantization_config ([`~transformers.BitsAndBytesConfig`], *optional*):
            Quantisation of a `model` given as a path.
        peft_config ([`~peft.PeftConfig`], *optional*):
            Adapter. The context encoder and FiLM are trained and saved with it. Without `target_modules` it covers PEFT's
            default modules of the base architecture, in the layers above the trunk where that embeds the options.
        kwargs:
            Passed to [`~trl.DPOTrainer`].

    Example:
    ```python
    >>> trainer = NPDPOTrainer("google/gemma-2b", train_dataset=dataset, peft_config=LoraConfig())
    >>> trainer.train()
    ```
    """

    _tag_names = ["trl", "np-dpo"]
    _name = "NP-DPO"
    _card_arguments = (
        *ContextualTrainerMixin._card_arguments,
        "np_learning_rate",
        "beta",
        "loss_type",
        "loss_weights",
        "max_length",
    )

    def __init__(
        self,
        model: "str | PreTrainedModel | PeftModel",
        ref_model: PreTrainedModel | nn.Module | None = None,
        args: NPDPOConfig | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | dict[str, Dataset | IterableDataset] | None = None,
        compute_metrics=None,
        quantization_config=None,
        peft_config: PeftConfig | None = None,
        **kwargs,
    ):
        args = NPDPOConfig("NP-DPO") if args is None else args
        self._check_arguments(args, NPDPOConfig)
        if peft_config is None and not isinstance(model, PeftModel):
            check_output_dir(args.output_dir)
        if not isinstance(ref_model, nn.Module | None):
            raise TypeError(
                f"`ref_model` is a {type(ref_model).__name__}, but must be a model. Leave it out, or load it by "
                "`AutoModelForCausalLM.from_pretrained`."
            )
        embedded, film_kwargs = _is_embedded(train_dataset), _film_kwargs(args, train_dataset)
        start = PolicyStart.of(model, args, film_kwargs, embedded, peft_config, quantization_config)
        start.set_learning_rate(args)
        if kwargs.get("processing_class") is None:
            kwargs["processing_class"] = start.load_tokenizer()
        self._base_revision, self._context_encoder_start = start.commit, None
        self._base_weights = None if isinstance(start.model, PeftModel) else hash_base_weights(start.model)
        self._user_metrics = compute_metrics
        with used_init_kwargs(args, start.source):
            super().__init__(
                start.model,
                ref_model=start.load_reference(args) if ref_model is None else ref_model,
                args=args,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                compute_metrics=self._compute_metrics,
                peft_config=start.peft_config,
                quantization_config=quantization_config if start.source is None else None,  # which TRL says is ignored
                **kwargs,
            )
        if isinstance(self.model, PeftModel):
            self._adopt_adapter(start.source)
        upcast_np_parameters(self.model)
        if args.context_encoder_path is not None:
            self.load_context_encoder(args.context_encoder_path)
        self._describe_training(args, embedded)
        self.data_collator = ContextualCollator(TokenTargets(self.data_collator), embed_size=self._embed_size)
        self._set_up_contexts()

    def _adopt_adapter(self, source: PolicySource | None) -> None:
        """Have the adapter save FiLM, and the hashes of the base that it was trained on."""
        base_weights = self._base_weights
        if isinstance(self.model, FiLMPeftModel):  # of `load_policy`, which read the hashes of its base
            base_weights = self.model.base_weights
        elif base_weights is None:  # it came with an adapter
            base_weights = hash_base_weights(self.model.get_base_model(), self.model.peft_config)
        FiLMPeftModel.adopt(self.model, base_weights)
        if source is not None:
            self.model.base_subfolder = source.init_kwargs.get("subfolder") or ""

    def _describe_training(self, args: NPDPOConfig, embedded: bool) -> None:
        """Say in the policy's configuration how it is trained, for its use; and have it carry its tokenizer."""
        model = self.accelerator.unwrap_model(self.model)
        model.set_tokenizer(self.processing_class)
        # which gathers weights that are sharded
        with unwrap_model_for_generation(self.model_wrapped, self.accelerator):
            set_film_units(model)
        config = model.config
        config.context_source = "columns" if embedded else "trunk"
        config.context_max_length, config.context_truncation = args.max_length, args.truncation_mode
        config.dpo_beta = args.beta
        # nobody else could use the name of a folder
        config.reference_name_or_path = None if self._base_revision is None else base_of(model).name_or_path
        config.reference_revision = self._base_revision

    def load_context_encoder(self, path: str) -> None:
        """
        Start from the context encoder of a trained reward model or policy.

        Args:
            path (`str`):
                Directory or Hub name of a [`NPRewardModel`] or a policy.

        Raises:
            `ValueError`: if there is none, or it has another configuration than the policy's.
            `OSError`: if there is no such folder, and it is no name on the Hub.
        """
        path = read_path(path)
        source = None if is_adapter(path) else getattr(AutoModel.from_pretrained(path), "context_encoder", None)
        if source is None:
            raise ValueError(
                f"{path!r} is an adapter or a model without a context encoder. Give a `NPRewardModel` or a merged policy, as "
                "`NPDPOTrainer.save_merged` writes it."
            )
        for target in self.model.modules():
            if isinstance(target, ContextEncoder):
                if source.config.to_diff_dict() != target.config.to_diff_dict():
                    raise ValueError(
                        f"The context encoder in {path!r} is not that of the policy: {source.config.to_diff_dict()} "
                        f"against {target.config.to_diff_dict()}. Set the same fields in `film_kwargs['context_config']`."
                    )
                target.load_state_dict(source.state_dict())
        self._context_encoder_start = public_name(path)

    def save_merged(self, output_dir: str, repo_id: str | None = None) -> None:
        """
        Save the policy with its adapter, if it has one, merged into it, and its code beside it: it loads in one line with
        `AutoModelForCausalLM` and `trust_remote_code=True`. A copy is merged, in the memory of the CPU: the adapter stays.

        Args:
            output_dir (`str`):
                Where model, tokenizer and model card go, when all of them are complete: another folder than that of the
                adapter.
            repo_id (`str`, *optional*):
                Name on the Hub of a repository that they are pushed to as well. It is made where it is absent.

        Raises:
            `ValueError`: if there is an adapter or another model in the folder, or the policy's own adapter depends on the
            user.
        """
        if Path(output_dir, "adapter_config.json").exists():
            raise ValueError(
                f"`output_dir={str(output_dir)!r}` holds an adapter, and whoever loads it would get that. Name another folder "
                "for the merged policy."
            )
        model = self.accelerator.unwrap_model(self.model)
        if isinstance(model, FiLMPeftModel):
            model.check_mergeable()
        if not self.is_world_process_zero():
            return
        named = {} if repo_id is None else {"source": repo_id, "model_name": repo_id.split("/")[-1]}
        with whole_model(output_dir, type(model.config).model_type, self.processing_class) as folder:
            merged = copy_to_cpu(model).merge_and_unload() if isinstance(model, PeftModel) else model
            merged.save_pretrained(folder)
            tokenizer_without_code(self.processing_class).save_pretrained(folder)
            self._save_card(folder, kind="merged", **{"source": str(output_dir), **named})
        if repo_id is not None:
            token = self.args.hub_token
            HfApi(token=token).create_repo(repo_id, private=self.args.hub_private_repo, exist_ok=True)
            names = files_to_share(output_dir, self.processing_class)
            upload(output_dir, names, repo_id=repo_id, commit_message="The merged policy", token=token)

    def push_to_hub(self, *args, **kwargs):
        """
        Share what `save_model` saves, under `hub_model_id`: an adapter with FiLM and context encoder where there is one, else
        the policy. [`NPDPOTrainer.save_merged`] with `repo_id` shares the merged policy. The rest is
        [`~transformers.Trainer.push_to_hub`].
        """
        if isinstance(self.model, FiLMPeftModel):
            self.model.warn_of_local_base()
        return super().push_to_hub(*args, **kwargs)

    def _card_facts(self) -> dict:
        model = self.accelerator.unwrap_model(self.model)
        has_adapter = isinstance(model, PeftModel)
        base = model.get_base_model() if has_adapter else model
        base_name = model.active_peft_config.base_model_name_or_path if has_adapter else base.name_or_path
        is_text = isinstance(self.train_dataset, Dataset) and "prompt" in self.train_dataset.column_names
        return {
            "kind": "adapter" if has_adapter else "merged",
            "base": base_name,
            "moved_base": public_name(base_name) if self.hub_model_id and Path(base_name).is_dir() else None,
            "base_revision": self._base_revision,
            "context_source": base.config.context_source,
            "film_site": base.config.film_site,
            "embed_size": base.config.context_config.embed_size,
            "conversational": is_text and isinstance(self.train_dataset[0]["prompt"], list),
        }

    def _settings(self) -> dict:
        model = self.accelerator.unwrap_model(self.model)
        settings = super()._settings()
        if isinstance(model, PeftModel):
            adapter = model.active_peft_config.to_dict()
            names = ("peft_type", "r", "lora_alpha", "lora_dropout", "target_modules", "layers_to_transform")
            settings |= {name: adapter[name] for name in names if adapter.get(name)}
        config = model.config
        names = [name for name in FILM_FIELDS if name not in _LONG_FIELDS and getattr(config, name) is not None]
        settings |= {name: getattr(config, name) for name in names}
        settings |= describe_context_encoder(config.context_config)
        if self._context_encoder_start is not None:
            settings["context encoder: started from"] = self._context_encoder_start
        return settings

    def _with_embeddings(self, dataset: Dataset, name: str) -> Dataset:
        if not set(EMBED_COLUMNS).isdisjoint(dataset.column_names):
            return self._remember(super()._with_embeddings(dataset, name))
        model = self.accelerator.unwrap_model(self.model)
        if isinstance(model, PeftModel):
            check_trunk(model)
        else:
            freeze_trunk(model)
        settings = (self.accelerator, self.args.embed_batch_size, name, self._kept_trunk)
        # which gathers weights that are sharded
        with unwrap_model_for_generation(self.model_wrapped, self.accelerator):
            embeds = embed_with_trunk(model, dataset, self.data_collator.target_collator, *settings)  # (rows, 2, H)
        for side, column in enumerate(EMBED_COLUMNS):
            dataset = dataset.add_column(column, list(embeds[:, side].numpy()))
        return self._remember(super()._with_embeddings(dataset, name))

    # Override: the context encoder and FiLM have a learning rate of their own.
    def create_optimizer(self, model=None):
        if self.optimizer is not None:
            return super().create_optimizer(model)
        if not any(parameter.requires_grad for parameter in self.model.parameters()):
            raise ValueError(
                "All weights of `model` are frozen, so nothing would be trained. Load a saved adapter with "
                "`load_policy(path, is_trainable=True)`."
            )
        optimizer = super().create_optimizer(model)
        ours = {id(parameter) for parameter in np_parameters(self.model if model is None else model).values()}
        groups = []
        for group in optimizer.param_groups:
            theirs = [parameter for parameter in group["params"] if id(parameter) not in ours]
            np_group = [parameter for parameter in group["params"] if id(parameter) in ours]
            groups.append({**group, "params": theirs})
            groups.append({**group, "params": np_group, "lr": self.args.np_learning_rate})
        optimizer.param_groups[:] = [group for group in groups if group["params"]]
        return optimizer


def _is_embedded(dataset: Dataset | IterableDataset | None) -> bool:
    """Whether options come embedded, as those of the contexts of a stream do."""
    if not isinstance(dataset, Dataset):
        return isinstance(dataset, IterableDataset)
    return not set(EMBED_COLUMNS).isdisjoint(dataset.column_names)


def _film_kwargs(args: NPDPOConfig, train_dataset) -> dict:
    """Fields of the FiLM config, with the size of the embedding columns."""
    film_kwargs = dict(args.film_kwargs or {})
    if isinstance(train_dataset, Dataset) and _is_embedded(train_dataset):
        embed_size = check_embeddings(train_dataset, "train")
        film_kwargs["context_config"] = {"embed_size": embed_size, **film_kwargs.get("context_config", {})}
    return film_kwargs

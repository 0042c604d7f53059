"""The command that evaluates a saved model on users: `np-trl evaluate`, `examples/evaluate_model.py`."""

import json
from dataclasses import dataclass, field

from transformers import AutoModel

from np_trl.data import EvaluationProtocol, PreferenceRows
from np_trl.evaluation.generations import Generations, Judge, StyleJudge, reward_judge
from np_trl.evaluation.policy_evaluation import PolicyEvaluation
from np_trl.evaluation.prompting import Prompting, request_cost
from np_trl.metrics.results import save_results
from np_trl.populations.built_in import POPULATIONS
from np_trl.scripts.command_parser import CommandParser
from np_trl.scripts.evaluation_arguments import EvaluationArguments
from np_trl.trainer import load_policy


@dataclass
class ScriptArguments(EvaluationArguments):
    num_generations: int = field(
        default=0, metadata={"help": "Answers that a policy writes for each user, at each N_C. 0: none."}
    )
    max_new_tokens: int = field(default=256, metadata={"help": "Largest number of tokens of an answer."})
    opponent: str | None = field(
        default=None, metadata={"help": "A policy that knows no users, to win against: the mixture's."}
    )
    judges: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Who judges the answers: `GROUP=PATH` of a reward model for each group, or the population of the package that "
            f"the users are of, {' or '.join(POPULATIONS)}."
        },
    )
    prompting: bool = field(
        default=False,
        metadata={
            "help": "Whether the reference policy answers as well, with a user's choices as text in the prompt and with an "
            "instruction. For the users of a population of the package."
        },
    )

    def __post_init__(self):
        if self.num_generations < 0:
            raise ValueError(f"`num_generations={self.num_generations}` must be at least 0. Set it to 0 for none.")
        if self.num_generations == 0 and (self.judges or self.opponent is not None):
            raise ValueError(
                "`--judges` and `--opponent` compare what is written. Set `--num_generations` to 1 or more."
            )
        if self.prompting and not (len(self.judges) == 1 and self.judges[0] in POPULATIONS):
            raise ValueError(
                f"`--prompting` needs to know what users want, but `--judges {self.judges}` is no population of the package. Name "
                f"{' or '.join(POPULATIONS)}, or leave `--prompting` out."
            )


def build_judge(names: list[str], rows: PreferenceRows, group_column: str | None, device) -> Judge | None:
    """Load the judges that the command line names."""
    if not names:
        return None
    if len(names) == 1 and names[0] in POPULATIONS:
        return StyleJudge(rows, POPULATIONS[names[0]].attributes)
    paths = dict(name.split("=", maxsplit=1) for name in names if "=" in name)
    if len(paths) < len(names) or group_column is None:
        raise ValueError(
            f"`--judges {names}` must each be `GROUP=PATH`, of the groups that `--group_column` names, or one of the populations "
            f"{list(POPULATIONS)}."
        )
    models = {group: AutoModel.from_pretrained(path).to(device).eval() for group, path in paths.items()}
    return reward_judge(models, rows.groups(group_column))


def evaluate_generations(evaluation: PolicyEvaluation, script_args: ScriptArguments) -> dict[str, float]:
    """Write for the users after each number of choices, and judge the answers."""
    device, metrics, opponent = evaluation.model.device, {}, None
    if script_args.opponent is not None:
        opponent = load_policy(script_args.opponent, dtype=script_args.dtype).to(device)
    judge = build_judge(script_args.judges, evaluation.rows, evaluation.protocol.group_column, device)
    for num_context in evaluation.protocol.num_contexts:
        generations = Generations(evaluation, num_context, script_args.num_generations, script_args.max_new_tokens)
        written = generations.evaluate(judge, opponent)
        if isinstance(judge, StyleJudge):
            written |= judge.describe(generations.texts["policy"], generations.users)
        if script_args.prompting:
            written |= compare_prompting(generations, judge)
        metrics |= {f"eval_nc{num_context}_{key}": value for key, value in written.items()}
    return metrics


def compare_prompting(generations: Generations, judge: StyleJudge) -> dict[str, float]:
    """What the reference policy writes when the prompt describes the user, and what a request costs either way."""
    prompting = Prompting(generations, judge)
    cost = request_cost(generations.model, generations.prompt_ids[:5], generations.latents)
    found = {f"policy_{key}": value for key, value in cost.items()}
    if generations.num_context:
        found |= prompting.few_shot()
    return found | prompting.instruction()


def main(script_args: ScriptArguments, protocol: EvaluationProtocol) -> None:
    evaluation = script_args.load(protocol)
    metrics = evaluation.evaluate()
    if script_args.num_generations and isinstance(evaluation, PolicyEvaluation):
        metrics |= evaluate_generations(evaluation, script_args)
    if evaluation.accelerator.is_main_process:
        save_results(script_args.output_dir, "eval", metrics)
        print(json.dumps(metrics, indent=2))


def run() -> None:
    """Parse the command line and run."""
    main(*CommandParser("evaluate", (ScriptArguments, EvaluationProtocol)).parse_args_and_config())

"""The choice of a method on the page of a new run: what each is for, and what is still missing for it."""

from dataclasses import dataclass

from django.urls import reverse

from labeling.models import PreferenceDataset, Project
from training.ingredients import (
    can_be_learnt_from,
    datasets_to_learn_from,
    policy_method_for,
    reward_models,
    tables_of,
)
from training.models import Run
from training.rlhf.methods import METHODS

GROUPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Learn what people prefer", ("reward_model",)),
    ("From preferences", ("dpo", "kto")),
    ("From a reward", ("ppo", "rloo", "grpo", "rejection_sampling")),
    ("From examples", ("sft", "distillation", "pretraining")),
    ("Before trusting a judge", ("judge_audit",)),
    ("By a constitution: data, no model", ("critique_revision", "ai_preferences")),
)
# When to take it, in a sentence.
WHEN = {
    "reward_model": "Learns to score completions as people would. It judges new policies before people do.",
    "dpo": "Learns from pairs at once, without a reward model: the plainest way, and the first to try.",
    "kto": "Learns from completions that were rated good or bad one by one, when there are no pairs.",
    "ppo": "Writes, is scored, and learns token by token: the strongest learner, and the most to tune.",
    "rloo": "Measures completions of a prompt against each other: close to PPO, with half of its parts.",
    "grpo": "Like RLOO with larger groups: for rewards that can be checked, such as rules.",
    "rejection_sampling": "Writes many, keeps the best and imitates it: slow to learn, hard to break.",
    "distillation": "Learns to write as a larger policy does, or as itself does under a system prompt.",
    "judge_audit": "Asks a judge what people were asked, and shows how often it agrees. Nothing is trained.",
    "pretraining": "Reads the texts of a field before it learns to answer in it.",
    "critique_revision": "The policy criticises and rewrites its own answers: examples for SFT to imitate.",
    "ai_preferences": "A model compares two completions by your principles: pairs for DPO or a reward model.",
    "sft": "Imitates demonstrations, or the completions that people preferred: a start for a raw model.",
}
# What to do about a table that no dataset holds: where to, and what the link says.
ASK = {
    "pairs": ("Open a comparison round", "comparison"),
    "rankings": ("Open a ranking round", "ranking"),
    "ratings": ("Open a rating round", "rating"),
}


@dataclass(frozen=True)
class Choice:
    """A method as the page offers it. `missing`: why it cannot be taken yet."""

    method: str
    label: str
    when: str
    missing: str = ""
    note: str = ""


def choices(project: Project) -> list[tuple[str, list[Choice]]]:
    """Groups of methods. Two queries."""
    tables = tables_of(project)
    has_reward_model = reward_models(project).exists()
    return [(title, [_choice(name, tables, has_reward_model) for name in names]) for title, names in GROUPS]


def _choice(name: str, tables: set[str], has_reward_model: bool) -> Choice:
    method = METHODS[name]
    if method.makes == "dataset":  # from the project's prompts
        return Choice(name, method.label, WHEN[name])
    missing = "" if tables & set(method.tables) else f"Needs a dataset. {method.learns_from}"
    if missing and tables:
        missing = f"No dataset has what it learns from: {method.learns_from.lower()}"
    note = ""
    if method.is_online and not missing and not has_reward_model:
        note = "There is no reward model yet; rules or a judge may be the reward."
    return Choice(name, method.label, WHEN[name], missing, note)


def likely_method(project: Project, dataset: PreferenceDataset | None) -> str:
    """A reward model first; a policy once one has learnt from this dataset, or from the newest."""
    dataset = dataset or datasets_to_learn_from(project, Run.Method.REWARD_MODEL).first()
    if dataset is None:
        return Run.Method.REWARD_MODEL
    has_learnt = reward_models(project).filter(run__dataset=dataset).exists()
    fits = can_be_learnt_from(dataset, Run.Method.REWARD_MODEL)
    return Run.Method.REWARD_MODEL if fits and not has_learnt else policy_method_for(dataset)


def way_to_rows(project: Project, method: str) -> tuple[str, str]:
    """A link to what brings the rows that the method learns from: label and address."""
    table = next((table for table in METHODS[method].tables if table in ASK), None)
    if table is None:
        return "Import what it learns from", reverse("import", args=[project.slug])
    label, kind = ASK[table]
    return label, f"{reverse('round_new', args=[project.slug])}?kind={kind}"

"""Every method of a run, what it takes and what it makes, in one table. Standard library only."""

from dataclasses import dataclass
from typing import Literal

Makes = Literal["reward_model", "policy", "completions", "dataset", "figures"]


@dataclass(frozen=True, kw_only=True)
class Method:
    """What a method is made of. `tables` of a preference dataset: at least one of them has to be there."""

    name: str  # in config.json
    label: str  # on pages
    makes: Makes
    tables: tuple[str, ...] = ()
    section: str = ""  # of the recipe: the settings that are its own
    is_online: bool = False  # draws completions while it learns, and needs a reward
    needs_teacher: bool = False  # draws completions while it learns, and needs somebody to learn from
    learns_from: str = ""  # for people: what has to be there, a sentence

    @property
    def trains(self) -> bool:
        return self.makes in ("reward_model", "policy")

    @property
    def draws(self) -> bool:
        """Whether the policy writes while it learns, or writes what others learn: how it does so matters."""
        return self.is_online or self.needs_teacher or self.makes == "dataset"


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            name="reward_model",
            label="Reward model",
            makes="reward_model",
            tables=("pairs", "rankings", "ratings"),
            section="reward_learning",
            learns_from="Comparisons, rankings or ratings.",
        ),
        Method(
            name="pretraining",
            label="Continued pretraining",
            makes="policy",
            tables=("texts",),
            learns_from="Texts of a field, without prompts.",
        ),
        Method(
            name="sft",
            label="SFT",
            makes="policy",
            tables=("demonstrations", "pairs", "rankings"),
            learns_from="Demonstrations, or the completions that were preferred.",
        ),
        Method(
            name="dpo",
            label="DPO",
            makes="policy",
            tables=("pairs",),
            section="dpo",
            learns_from="Pairs of completions.",
        ),
        Method(
            name="kto",
            label="KTO",
            makes="policy",
            tables=("unpaired", "ratings"),
            section="kto",
            learns_from="Single completions that were rated.",
        ),
        Method(
            name="ppo",
            label="PPO",
            makes="policy",
            tables=("prompts",),
            section="ppo",
            is_online=True,
            learns_from="Prompts, and a reward.",
        ),
        Method(
            name="rloo",
            label="RLOO",
            makes="policy",
            tables=("prompts",),
            section="rloo",
            is_online=True,
            learns_from="Prompts, and a reward.",
        ),
        Method(
            name="grpo",
            label="GRPO",
            makes="policy",
            tables=("prompts",),
            section="grpo",
            is_online=True,
            learns_from="Prompts, and a reward.",
        ),
        Method(
            name="rejection_sampling",
            label="Rejection sampling",
            makes="policy",
            tables=("prompts",),
            section="rejection_sampling",
            is_online=True,
            learns_from="Prompts, and a reward.",
        ),
        Method(
            name="distillation",
            label="Distillation",
            makes="policy",
            tables=("prompts",),
            section="distillation",
            needs_teacher=True,
            learns_from="Prompts, and a teacher or a system prompt.",
        ),
        Method(
            name="judge_audit",
            label="Judge audit",
            makes="figures",
            tables=("pairs", "rankings"),
            section="judge_audit",
            learns_from="Comparisons by people.",
        ),
        Method(
            name="critique_revision",
            label="Critique and revision",
            makes="dataset",
            section="critique_revision",
            learns_from="Prompts, and a constitution.",
        ),
        Method(
            name="ai_preferences",
            label="AI preferences",
            makes="dataset",
            section="ai_preferences",
            learns_from="Prompts, a constitution, and a model that judges by it.",
        ),
        Method(name="sample", label="Sample completions", makes="completions"),
    )
}

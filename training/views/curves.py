"""The curves of a run's page: which metrics share a chart, and what each chart shows, in plain words.

`static/js/run.js` draws them as their numbers arrive, and a chart without numbers is not drawn: a name that
only some trainers write may stand here.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from training.models import Artifact, Run
from training.rlhf.held_out_figures import JUDGE
from training.rlhf.methods import METHODS

MOST_LINES = 6  # colours of static/css/training.css


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One chart. `lines`: what a line is called, and the metrics that it may be, the first one found."""

    title: str
    meaning: str
    lines: dict[str, tuple[str, ...]] = field(default_factory=dict)
    share: bool = False  # of 0 to 1
    across: str = ""  # what stands below: "root_kl", else the step


LOSS = Curve(
    title="Loss",
    meaning="What training makes smaller. When it falls in training but rises on held-out rows, the run "
    "learns by heart.",
    lines={"training": ("loss",), "held out": ("eval_loss",)},
)
ONLINE_LOSS = Curve(
    title="Loss",
    meaning="A means to an end here: it wanders about 0 and need not fall. Look at the reward.",
    lines={"training": ("loss",)},
)
ACCURACY = Curve(
    title="Reward accuracy",
    meaning="How often the completion that people chose scores above the one they rejected; 0.5 is chance.",
    share=True,
    lines={
        "training": ("rewards/accuracies", "accuracy"),
        "held out": ("eval_rewards/accuracies", "eval_accuracy"),
    },
)
MARGIN_LINES: dict[str, tuple[str, ...]] = {
    "training": ("rewards/margins", "margin"),
    "held out": ("eval_rewards/margins", "eval_margin"),
}
OF_LIKELIHOOD = (
    "a completion's reward is how much likelier it has become than it was for the reference, the policy that "
    "the run starts from, times beta."
)
REWARD = Curve(
    title="Reward",
    meaning="What a completion earns on average, before the price of KL: this is what should rise. Read some "
    "completions too: a reward that rises fast may have been tricked.",
    lines={
        "mean": ("reward/mean", "reward"),
        "best of a prompt": ("reward_best",),
        "held out": ("eval_reward",),
        "held out, by the judge": (f"eval_rewards/{JUDGE}/mean",),
    },
)
KL = Curve(
    title="KL to the reference",
    meaning="How far the policy has moved from the one it starts from, in nats. A slow rise is learning; a "
    "steep one often means that it has found a trick.",
    lines={"KL": ("kl", "objective/kl", "eval_kl")},
)
ENTROPY = Curve(
    title="Entropy",
    meaning="How much variety is left in each token, in nats. Near 0 the policy says one thing only.",
    lines={"entropy": ("entropy",)},
)
LENGTH = Curve(
    title="Length of a completion",
    meaning="In tokens, on average. When it grows with the reward, length may be all that is learnt.",
    lines={"mean": ("completion_length", "completions/mean_length")},
)
ENDS = Curve(
    title="Ends by itself",
    meaning="The share of completions that come to an end before they are cut.",
    share=True,
    lines={"completions": ("eos_rate",)},
)
OF_PPO = (
    Curve(
        title="Loss of policy and value",
        meaning="The policy's wanders about 0; the value function's should fall and stay low.",
        lines={"policy": ("loss/policy",), "value": ("loss/value",)},
    ),
    Curve(
        title="Explained variance",
        meaning="How much of the rewards the value function foresees: 1 is all, 0 nothing, below 0 worse "
        "than nothing.",
        lines={"value": ("value/explained_variance",)},
    ),
    Curve(
        title="KL coefficient",
        meaning="The price of moving away. It rises while the KL is above what is aimed at, and falls below.",
        lines={"coefficient": ("kl_coef",)},
    ),
    Curve(
        title="Clipped",
        meaning="The share of tokens whose probability wanted to move further than the clip allows. Far "
        "above 0.3: lower the learning rate.",
        lines={"tokens": ("policy/clipfrac",)},
    ),
    Curve(
        title="KL of one update",
        meaning="How far the policy moves on one rollout, in nats a token.",
        lines={"step": ("policy/approxkl",)},
    ),
    ENDS,
)
OF_GROUPS = (
    Curve(
        title="Cut short",
        meaning="The share of completions that did not end by themselves.",
        share=True,
        lines={"completions": ("completions/clipped_ratio",)},
    ),
    Curve(
        title="Groups that teach nothing",
        meaning="The share of prompts whose completions all earned the same: there is nothing to tell apart.",
        share=True,
        lines={"groups": ("frac_reward_zero_std",)},
    ),
)
OF_EXAMPLES = (
    LOSS,
    Curve(
        title="Tokens guessed right",
        meaning="How often the likeliest token is the one that stands in the example.",
        share=True,
        lines={"training": ("mean_token_accuracy",), "held out": ("eval_mean_token_accuracy",)},
    ),
    ENTROPY,
)
BY_METHOD: dict[str, tuple[Curve, ...]] = {
    "reward_model": (
        LOSS,
        ACCURACY,
        Curve(title="Reward margin", meaning="By how much the chosen one scores higher.", lines=MARGIN_LINES),
    ),
    "dpo": (
        LOSS,
        ACCURACY,
        Curve(
            title="Reward margin",
            meaning=f"By how much the chosen one scores higher. In DPO {OF_LIKELIHOOD}",
            lines=MARGIN_LINES,
        ),
        Curve(
            title="Log-probability",
            meaning="How likely the policy is to write a whole completion: 0 is certain, and each step down "
            "by 2.3 is ten times less likely. The gap between chosen and rejected should open; if chosen "
            "falls far too, try a higher beta.",
            lines={"chosen": ("logps/chosen",), "rejected": ("logps/rejected",)},
        ),
    ),
    "kto": (
        LOSS,
        Curve(
            title="Reward of good and bad",
            meaning=f"Good completions should rise above bad ones. In KTO {OF_LIKELIHOOD}",
            lines={"good": ("rewards/chosen",), "bad": ("rewards/rejected",)},
        ),
        KL,
    ),
    "ppo": (REWARD, KL, ENTROPY, LENGTH, *OF_PPO),
    "rloo": (REWARD, KL, ENTROPY, LENGTH, *OF_GROUPS, ONLINE_LOSS),
    "grpo": (REWARD, KL, ENTROPY, LENGTH, *OF_GROUPS, ONLINE_LOSS),
    "rejection_sampling": (REWARD, *OF_EXAMPLES, LENGTH),
    "judge_audit": (
        Curve(
            title="On people's side",
            meaning="Of the comparisons that it decided, how often the judge chose what people chose.",
            share=True,
            lines={"agreement": ("judge/agreement",)},
        ),
        Curve(
            title="No preference",
            meaning="Answers that are none, choices of a place and not of a text, and ties.",
            share=True,
            lines={
                "nonsense": ("judge/nonsense",),
                "inconsistent": ("judge/inconsistent",),
                "tie": ("judge/tie",),
            },
        ),
    ),
    "critique_revision": (
        Curve(
            title="Answers that changed",
            meaning="The share of answers that the policy wrote anew, and of revisions that end by "
            "themselves; those that are cut are left out.",
            share=True,
            lines={"changed": ("revisions/changed",), "ended": ("eos_rate",)},
        ),
        Curve(
            title="Length",
            meaning="In tokens, on average.",
            lines={
                "answers": ("answers/mean_length",),
                "critiques": ("critiques/mean_length",),
                "revisions": ("revisions/mean_length",),
            },
        ),
    ),
    "ai_preferences": (
        Curve(
            title="What the judge says",
            meaning="Shares of its verdicts. A choice that changes when the two are exchanged is "
            "inconsistent, and what is no answer is nonsense: neither is ever a preference.",
            share=True,
            lines={
                "prefers one": ("verdicts/decided",),
                "tie": ("verdicts/tie",),
                "inconsistent": ("verdicts/inconsistent",),
                "nonsense": ("verdicts/nonsense",),
            },
        ),
        LENGTH,
    ),
    "sft": OF_EXAMPLES,
    "pretraining": OF_EXAMPLES,
    "distillation": (
        Curve(
            title="Divergence from the teacher",
            meaning="How far the next tokens of student and teacher are apart, in nats. This is what "
            "training makes smaller.",
            lines={"training": ("loss",), "held out": ("eval_loss",)},
        ),
        LENGTH,
        ENDS,
    ),
}


def curves_of(run: Run) -> list[dict[str, Any]]:
    """The charts of a run's page, in order, as run.js reads them."""
    curves = list(BY_METHOD.get(run.method, ()))
    names = [reward["name"] for reward in run.config.get("rewards") or []]
    names += [f"{one['name']} disagreement" for one in _ensembles(run)]
    for reward in run.config.get("rewards") or []:
        if reward["kind"] == "gated":
            names += [f"{reward['name']} {part}" for part in ("helpfulness", "safety", "unsafe")]
    names += _criteria(run)
    if METHODS[run.method].is_online and len(names) > 1:
        curves.insert(1, _one_by_one(names))
    if METHODS[run.method].is_online and KL in curves:
        watched = [reward["name"] for reward in run.config.get("rewards") or [] if not reward["weight"]]
        curves.append(_against_distance(watched))
    return [asdict(curve) for curve in curves]


def _ensembles(run: Run) -> list[dict[str, Any]]:
    return [one for one in run.config.get("rewards") or [] if one["kind"] == "ensemble"]


def _criteria(run: Run) -> list[str]:
    """Parts of the reward that are criteria of its reward models. A query where there are reward models."""
    named = {
        one["location"]: one["name"] for one in run.config.get("rewards") or [] if one["kind"] == "model"
    }
    if not named:
        return []
    found: list[str] = []
    for model in Artifact.objects.filter(folder__in=named, run__project=run.project_id).select_related("run"):
        learning = model.run.config.get("reward_learning") or {}
        if learning.get("one_head_each", True):
            found += [f"{named[model.folder]} {name}" for name in learning.get("criteria") or {}]
    return found


def _against_distance(watched: Iterable[str]) -> Curve:
    return Curve(
        title="Reward against distance",
        meaning="Each dot is a step: what completions earn, by how far the policy has moved from its start "
        "(the square root of the KL; 2210.10760). Where a reward that is only watched falls while the one "
        "that is learnt from still rises, the latter is being tricked: an earlier policy was better.",
        lines={
            "reward": ("reward/mean", "reward"),
            **{name: (f"rewards/{name}/mean",) for name in list(watched)[: MOST_LINES - 1]},
        },
        across="root_kl",
    )


def _one_by_one(names: Iterable[str]) -> Curve:
    return Curve(
        title="Rewards one by one",
        meaning="Before their weights. When one rises and another falls, the weights decide what wins.",
        lines={name: (f"rewards/{name}/mean",) for name in list(names)[:MOST_LINES]},
    )

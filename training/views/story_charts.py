"""The charts above a project's story: what people prefer, and what reward cost in KL."""

from labeling.models import Policy
from training.charts import Chart, Interval, Spot, interval_chart, scatter_chart
from training.views.evaluations import policy_figures
from training.views.story import Story, artifact_of


def win_rate_chart(story: Story) -> Chart | None:
    """People's verdict on each candidate, by round; None before the first."""
    measured = [d for d in story.decisions if d.win_rate is not None and d.round is not None]
    if not measured:
        return None
    return interval_chart(
        key="win-rate",
        title="What people prefer: new policy against old",
        x_label="policy",
        y_label="human win rate",
        points=[
            Interval(
                label=str(d.policy),
                value=d.win_rate or 0.0,
                low=d.low if d.low is not None else 0.0,
                high=d.high if d.high is not None else 1.0,
                n=d.labels,
                good=d.promoted,
            )
            for d in measured
        ],
        note="Of blind judgements, the share that prefers the new policy; it takes over when the whole "
        "interval lies above one half.",
    )


def reward_chart(story: Story) -> Chart | None:
    """Reward against KL for each policy that a run evaluated; None before the second, as one dot says little.

    Reward models have no common scale, so each policy stands by what it gained over its parent.
    """
    spots = []
    for policy in story.policies:
        artifact = artifact_of(policy)
        figures = policy_figures(artifact.run.evaluation) if artifact else None
        if figures is None or figures.kl is None or figures.reward_gained is None:
            continue
        spots.append(
            Spot(
                label=policy.name,
                x=figures.kl,
                y=figures.reward_gained,
                good=policy.state == Policy.State.PROMOTED,
            )
        )
    if len(spots) < 2:
        return None
    return scatter_chart(
        key="reward-kl",
        title="What it cost: reward gained against KL",
        x_label="KL from the parent, nats",
        y_label="reward gained over the parent",
        spots=spots,
        note="Reward gained: how much higher the reward model scores it than the policy it came from. "
        "KL: how far it has moved; below about 10 nats a completion it still writes much like it.",
    )

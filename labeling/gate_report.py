"""What a manager sees of a round's gate: how many judgements are in, and once it is closed what they say.

Reads only. Whether a policy is promoted is decided elsewhere; here it is read off the policy and the project.
While people judge, the figures stay hidden: a manager may be a rater of the same round.
"""

from dataclasses import dataclass

from django.db.models import Count

from labeling.agreement import WinRate, win_rate
from labeling.datasets import gate_outcomes
from labeling.models import Assignment, Policy, Round, Task

EVEN = 0.5
BOOTSTRAP_SEED = 0  # the seed of the decision itself, so that both name the same interval


@dataclass(frozen=True, kw_only=True)
class GateReport:
    done: int
    wanted: int
    win: WinRate | None = None  # of the new policy; None while the round is open, and when nobody compared


def gate_of(round: Round) -> GateReport | None:
    """The report; None for a round that puts no policy against another."""
    if None in (round.new_policy_id, round.old_policy_id) or round.new_policy_id == round.old_policy_id:
        return None
    slots = Assignment.objects.filter(round=round, task__purpose=Task.Purpose.GATE)
    counts = slots.aggregate(wanted=Count("pk"), done=Count("label"))
    if not counts["wanted"]:
        return None
    is_closed = round.state == Round.State.CLOSED
    win = win_rate(gate_outcomes(round), seed=BOOTSTRAP_SEED) if is_closed else None
    return GateReport(**counts, win=win)


def verdict(round: Round, gate: GateReport) -> str:
    """What became of the new policy of a closed round, in a sentence."""
    new, current = round.new_policy, round.project.current_policy
    assert new is not None  # a gate has two sides
    won = gate.win is not None and gate.win.low > EVEN
    if current == new:
        return f"{new} is promoted: it is the current policy now."
    if new.state == Policy.State.PROMOTED:
        return f"{new} was promoted, and {current} has taken over since."
    if gate.win is None:
        return f"Nobody compared it with {round.old_policy}, so {new} is not promoted."
    if won and current != round.old_policy:
        return f"People prefer {new} to {round.old_policy}. The current policy is {current}, and stays it."
    if won:
        return f"People prefer {new}. It takes over as soon as a training worker has written the decision."
    return (
        f"{new} is not promoted: the interval of its win rate does not lie wholly above 50 %. "
        "More labels may decide it, or a manager with a reason."
    )

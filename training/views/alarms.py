"""What a run's page warns of beside its figures: signs that people know from runs that went wrong."""

from training.models import Run
from training.results import number_in

# Written by training.rlhf.checks.alarms while a run trains.
TOLD = {
    "alarms/chosen_fell": "In training the preferred completions became {:.0f} nats less likely than they "
    "were at the start. Read what it writes; a higher beta, a lower learning rate or an SFT term keeps them.",
    "alarms/eos_rate": "In training only {:.0%} of its completions still ended by themselves.",
    "alarms/negative_kl": "In training its KL was {:.1f} nats, which is below 0: what it learnt from was not "
    "drawn from itself.",
}
FEWER_ENDS = 0.1  # share of completions


def of(run: Run) -> list[str]:
    """Sentences, the newest last. One query."""
    lines = (
        run.metrics.filter(values__has_any_keys=list(TOLD)).order_by("seq").values_list("values", flat=True)
    )
    told = {name: float(line[name]) for line in lines for name in TOLD if name in line}
    found = [TOLD[name].format(value) for name, value in told.items()]
    return [*found, *_of_evaluation(run)] if run.state == Run.State.COMPLETE else found


def _of_evaluation(run: Run) -> list[str]:
    found = []
    new, old = (number_in(run.evaluation, f"eos_rate_{side}") for side in ("new", "old"))
    if new is not None and old is not None and new < old - FEWER_ENDS:
        found.append(
            f"It ends {new:.0%} of its completions by itself, the policy that it came from {old:.0%}: it is "
            "unlearning to stop. Allow more tokens, or begin again with a lower learning rate."
        )
    accuracy, pairs = number_in(run.evaluation, "accuracy"), number_in(run.evaluation, "pairs")
    # Two standard errors of a coin.
    if run.makes == "reward_model" and accuracy is not None and pairs and accuracy <= 0.5 + pairs**-0.5:
        found.append(
            f"On {pairs:.0f} held-out pairs it agrees with people {accuracy:.0%} of the time, which a coin "
            "may do as well. Collect more comparisons, begin from a policy after SFT, and look at how far "
            "raters agree with each other."
        )
    return found

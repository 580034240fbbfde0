"""What is shown beside a reward and never learnt from: the one place here that asks the hidden preference.

In the starter's world it says what people would, so that a run's page shows where the learnt reward parts
from it. Its weight in a recipe is 0 (training.rlhf.method_settings.RewardFunction refuses any other).
"""

from collections.abc import Sequence

from training.rlhf.rendering import Messages
from training.rlhf.sampling import Sampled
from training.rlhf.starter import hidden_preference


def hidden_scores(prompts: Sequence[Messages], samples: Sequence[Sampled]) -> list[float]:
    return [
        hidden_preference.score(prompt[-1]["content"], one.text)
        for prompt, one in zip(prompts, samples, strict=True)
    ]

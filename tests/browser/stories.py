"""Rounds with texts worth looking at: for tests that read a page and for the eyes that judge it."""

from labeling.models import Policy, Project, Round
from labeling.models.prompts import Message
from labeling.prompts import NewCompletion, add_completions, add_prompts
from labeling.rounds import NewTask, RoundPlan, fill, open_round
from tests import factories

TEXTS = [
    "Once upon a time there was a fox who found an old lantern in the grass. It was dark, and the fox was a "
    "little afraid.\n\nShe lit it and walked home through the wood. On the way she met a lost hedgehog, and "
    "they went together. The end.",
    "A fox had a lantern. The fox threw it in the river because the river was loud. Then it was dark.",
    "The fox held the lantern high so that **everybody** could see:\n\n- the owl\n- the mouse\n- the bear\n\n"
    "```python\ndef light(lantern):\n    if lantern.is_dark:\n        lantern.light()\n```\n",
    "There is a table about lanterns.\n\n| lantern | light |\n|---|---|\n| brass | warm |\n| tin | cold |\n",
]
EARLIER: list[Message] = [
    {"role": "user", "content": "Do you know stories about animals?"},
    {"role": "assistant", "content": "I do. About which animal would you like to hear?"},
]


def make_round(
    project: Project,
    kind: str = "comparison",
    *,
    tasks: int = 3,
    each: int | None = None,
    earlier: bool = False,
) -> Round:
    """An open round; each text is written into its completion as it stands in TEXTS."""
    each = each or {"rating": 1, "comparison": 2, "ranking": 4}[kind]
    policy = Policy.objects.filter(project=project).first() or factories.make_policy(project)
    things = ["lantern", "river", "key", "coat", "boat", "bell", "kite", "apple"]
    asked = [f"Tell me a story about a fox and a {things[n % 8]}{'!' * (n // 8)}." for n in range(tasks)]
    before = EARLIER if earlier else []
    prompts = add_prompts(
        project=project, conversations=[[*before, {"role": "user", "content": text}] for text in asked]
    )
    rows = [
        NewCompletion(prompt_id=prompt.pk, policy_id=policy.pk, text=TEXTS[n % len(TEXTS)])
        for prompt in prompts
        for n in range(each)
    ]
    written = add_completions(rows)
    round = Round.objects.create(
        project=project,
        number=project.rounds.count() + 1,
        protocol=factories.make_protocol(project, kind),
        plan=RoundPlan(source="existing", train_prompts=tasks, completions_per_task=each).to_json(),
    )
    new = [
        NewTask(
            prompt_id=prompt.pk,
            purpose="train",
            completion_ids=[c.pk for c in written[n * each : (n + 1) * each]],
        )
        for n, prompt in enumerate(prompts)
    ]
    fill(round=round, tasks=new)
    open_round(round)
    return round

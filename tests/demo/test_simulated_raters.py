"""Simulated raters see the page and answer it; what they mean is what is stored."""

import random

import pytest
from django.contrib.auth.models import User
from django.test import Client

from labeling import prompts, rounds
from labeling.models import Label, Project, Round
from rlhf_site.demo.simulated_raters import answer
from rlhf_site.demo.task_page import TaskPage, read_task
from tests import factories

ASKED = "Tell me a story about a fox and a lantern."
GOOD = (
    "Once upon a time a fox found a lantern by the river. The fox shared some bread with a cold ant. "
    "The fox mended a coat for a sad hen. They lived happily ever after."
)
FAIR = "Once upon a time a fox found a lantern by the river. The fox shared some bread with a cold ant."
BAD = "The owl stole a pie from an old hen. The owl stole a pie from an old hen."


def open_round(project: Project, kind: str, texts: list[str]) -> Round:
    policy = factories.make_policy(project)
    [prompt] = prompts.add_prompts(
        project=project,
        conversations=[
            [
                {"role": "user", "content": "Hello."},
                {"role": "assistant", "content": "Hello to you."},
                {"role": "user", "content": ASKED},
            ]
        ],
    )
    prompt.split = "train"
    prompt.save()
    prompts.add_completions(
        [prompts.NewCompletion(prompt_id=prompt.pk, policy_id=policy.pk, text=t, sampling={}) for t in texts]
    )
    plan = rounds.RoundPlan(source="existing", train_prompts=1, completions_per_task=len(texts))
    return rounds.create_round(project=project, protocol=factories.make_protocol(project, kind), plan=plan)


def shown_to(rater: User, round: Round) -> tuple[Client, TaskPage]:
    client = Client()
    client.force_login(rater)
    return client, read_task(client.get(f"/rounds/{round.pk}/judge/").content.decode())


def label_given(client: Client, task: TaskPage) -> Label:
    fields = {**task.fields, **answer(task, random.Random(0), 0.0)}
    client.post(task.action, fields, headers={"HX-Request": "true"})
    return Label.objects.get()


def test_the_page_is_read_as_it_stands(project: Project, ann: User) -> None:
    _, task = shown_to(ann, open_round(project, "comparison", [GOOD, BAD]))
    assert task.kind == "comparison"
    assert task.prompt == ASKED
    assert sorted(task.completions) == sorted([GOOD, BAD])
    assert len(task.choices) == 10  # four steps each way, a tie, both bad


@pytest.mark.parametrize("_again", range(4))
def test_a_perfect_rater_prefers_the_better_story_on_whichever_side_it_stands(
    project: Project, ann: User, _again: int
) -> None:
    client, task = shown_to(ann, open_round(project, "comparison", [GOOD, BAD]))
    label = label_given(client, task)
    [good] = label.assignment.task.completions.filter(text=GOOD)
    assert label.value == {"outcome": "preferred", "preferred": good.pk, "strength": 4}


def test_a_perfect_rater_ranks_from_best_to_worst(project: Project, ann: User) -> None:
    client, task = shown_to(ann, open_round(project, "ranking", [BAD, GOOD, FAIR]))
    label = label_given(client, task)
    assert label.value is not None
    by_text = {c.text: label.value["ranks"][str(c.pk)] for c in label.assignment.task.completions.all()}
    assert by_text == {GOOD: 1, FAIR: 2, BAD: 3}


def test_a_perfect_rater_gives_a_good_story_full_marks(project: Project, ann: User) -> None:
    client, task = shown_to(ann, open_round(project, "rating", [GOOD]))
    assert label_given(client, task).value == {"scores": {"overall": 5}}


def test_nothing_left_is_read_as_nothing(project: Project, ann: User) -> None:
    round = open_round(project, "rating", [GOOD])
    client, task = shown_to(ann, round)
    label_given(client, task)
    assert shown_to(ann, round)[1].kind == "nothing"

"""The playground: the worker that holds policies, who may ask them, and the pages around it."""

import asyncio
import json
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from labeling.models import Policy, Project
from tests import factories
from tests.training import stage
from training.models import ChatSide, Run, ServedPolicy, Worker
from training.playground import answers, chats, servings
from training.worker import TrainingWorker

STUB = Path(__file__).with_name("stub_policy.py")


@pytest.fixture(autouse=True)
def _stubs(settings: Any) -> None:
    stage.use_stub(settings)
    settings.SERVE_COMMAND = [sys.executable, str(STUB), "answers"]


@pytest.fixture
def policies(project: Project) -> list[Policy]:
    made = [stage.make_starter(project)]
    for name in ("second", "third"):
        policy = factories.make_policy(project, name)
        policy.location = f"org/{name}"
        policy.save()
        made.append(policy)
    return made


@pytest.fixture
def worker(request: pytest.FixtureRequest) -> Iterator[TrainingWorker]:
    """On a GPU by its name; the stub asks for none."""
    one = stage.make_worker(device=getattr(request, "param", "cpu:0"))
    yield one
    one.playground.abandon()


@pytest.fixture
def manager(client: Client, mia: User) -> Client:
    client.force_login(mia)
    return client


def holds(worker: TrainingWorker, *policies: Policy) -> None:
    """Turn the worker until these answer."""
    wanted = [policy.pk for policy in policies]

    def all_answer() -> bool:
        return all(servings.place_of(pk).state == "ready" for pk in wanted)

    stage.work_until(worker, all_answer)


def pid_of(worker: TrainingWorker, number: int = 0) -> int:
    child: Any = worker.playground.seats[number].child
    return int(child.pid)


@pytest.mark.slow
def test_a_wanted_policy_answers_who_knows_its_token(policies: list[Policy], worker: TrainingWorker) -> None:
    servings.want(policies[0])
    holds(worker, policies[0])
    place = servings.place_of(policies[0].pk)
    asked = {"messages": [], "stream": False}
    address = f"http://{place.address}/v1/chat/completions"
    right = {"Authorization": f"Bearer {place.token}"}
    assert httpx2.post(address, json=asked, headers=right, trust_env=False).status_code == 200
    assert httpx2.post(address, json=asked, trust_env=False).status_code == 401


@pytest.mark.slow
def test_a_prompted_variant_answers_under_its_prompt(policies: list[Policy], worker: TrainingWorker) -> None:
    policies[1].system_prompt, policies[1].location = "Rhyme. ", policies[0].location
    policies[1].save()
    for policy, before in ((policies[0], "policy-"), (policies[1], "Rhyme. policy-")):
        servings.want(policy)
        holds(worker, policy)
        place = servings.place_of(policy.pk)
        answer = httpx2.post(
            f"http://{place.address}/v1/chat/completions",
            json={"messages": [], "stream": False},
            headers={"Authorization": f"Bearer {place.token}"},
            trust_env=False,
        )
        assert answer.json()["choices"][0]["message"]["content"].startswith(before)


@pytest.mark.slow
def test_a_policy_that_nobody_writes_to_leaves_memory(policies: list[Policy], worker: TrainingWorker) -> None:
    servings.want(policies[0])
    holds(worker, policies[0])
    pid = pid_of(worker)
    ServedPolicy.objects.update(wanted_until=timezone.now())
    stage.work_until(worker, lambda: not worker.playground.seats)
    assert not stage.is_alive(pid)
    assert servings.place_of(policies[0].pk).state == "waiting"


@pytest.mark.parametrize("worker", ["cuda:0"], indirect=True)
@pytest.mark.slow
def test_on_a_gpu_training_goes_first_and_the_policy_comes_back(
    policies: list[Policy], worker: TrainingWorker, project: Project, ann: User
) -> None:
    servings.want(policies[0])
    holds(worker, policies[0])
    pid = pid_of(worker)
    run = stage.make_queued_run(project, ann)
    stage.work_until(worker, lambda: worker.device_lane is not None)
    assert not stage.is_alive(pid)
    place = servings.place_of(policies[0].pk)
    assert (place.state, place.message) == (
        "waiting",
        f"{run} has the device; the policy is loaded after it.",
    )
    stage.work_through(worker, run)
    assert run.state == Run.State.COMPLETE
    holds(worker, policies[0])


@pytest.mark.slow
def test_on_a_cpu_both_go_on_side_by_side(
    policies: list[Policy], worker: TrainingWorker, project: Project, ann: User
) -> None:
    servings.want(policies[0])
    holds(worker, policies[0])
    stage.work_through(worker, stage.make_queued_run(project, ann))
    assert servings.place_of(policies[0].pk).state == "ready"


@pytest.mark.slow
def test_the_policy_that_was_unused_longest_makes_room(
    policies: list[Policy], worker: TrainingWorker
) -> None:
    for policy in policies[:2]:
        servings.want(policy)
    holds(worker, *policies[:2])
    ServedPolicy.objects.filter(policy=policies[0]).update(used_at=timezone.now() - timedelta(minutes=2))
    servings.want(policies[2])
    holds(worker, policies[1], policies[2])
    assert servings.place_of(policies[0].pk).state == "waiting"


@pytest.mark.slow
def test_a_policy_that_cannot_be_loaded_says_why_until_it_is_wanted_anew(
    policies: list[Policy], worker: TrainingWorker, settings: Any
) -> None:
    settings.SERVE_COMMAND = [sys.executable, str(STUB), "refuses"]
    servings.want(policies[0])
    stage.work_until(worker, lambda: servings.place_of(policies[0].pk).state == "failed")
    assert (
        "The weights are torn. (/models/x) Copy the model again." in servings.place_of(policies[0].pk).message
    )
    settings.SERVE_COMMAND = [sys.executable, str(STUB), "answers"]
    servings.want(policies[0])
    holds(worker, policies[0])


@pytest.mark.slow
def test_a_worker_that_was_taken_for_dead_ends_its_child(
    policies: list[Policy], worker: TrainingWorker
) -> None:
    servings.want(policies[0])
    holds(worker, policies[0])
    pid = pid_of(worker)
    ServedPolicy.objects.update(leased_until=timezone.now() - timedelta(seconds=1))
    other = servings.claim(worker="another")
    assert other is not None
    stage.work_until(worker, lambda: not stage.is_alive(pid))
    other.refresh_from_db()
    assert (other.worker, other.attempt) == ("another", 2)


def test_the_page_says_that_no_worker_is_alive_and_what_to_do(
    manager: Client, project: Project, policies: list[Policy], mia: User
) -> None:
    address = reverse("playground", args=[project.slug])
    answer = manager.post(address, {"left": policies[0].pk, "right": policies[1].pk}, follow=True)
    assert "python manage.py train_worker" in answer.content.decode()
    answer = manager.post(reverse("playground_say", args=[project.slug]), {"text": "Hello"}, follow=True)
    assert "No training worker is alive" in answer.content.decode()
    assert all(side.is_asked for side in ChatSide.objects.all())  # nothing said is lost


@pytest.mark.slow
def test_hostile_answers_stay_text_and_each_side_keeps_its_own_history(
    manager: Client, project: Project, policies: list[Policy], mia: User, worker: TrainingWorker
) -> None:
    chats.begin(project=project, user=mia, policies=policies[:2])
    holds(worker, *policies[:2])
    worker.be_seen()
    for text in ("Hello", "Again"):
        page = manager.post(reverse("playground_say", args=[project.slug]), {"text": text}, follow=True)
    assert "<script>heard" not in page.content.decode()
    assert "&lt;script&gt;heard" in page.content.decode()
    left, right = ChatSide.objects.order_by("place")
    assert [one["content"].split()[0] for one in left.messages[1::2]] == [f"policy-{policies[0].pk}"] * 2
    assert left.messages[-1]["content"].endswith(" 3")  # it was told of its own first answer
    manager.post(reverse("playground_go_on", args=[right.pk]))
    left.refresh_from_db()
    assert left.messages == right.messages
    manager.post(reverse("playground_clear", args=[project.slug]))
    assert not any(side.messages for side in ChatSide.objects.all())


def test_an_answer_is_dropped_where_the_side_has_moved_on(
    project: Project, policies: list[Policy], mia: User
) -> None:
    chat = chats.begin(project=project, user=mia, policies=policies[:2])
    chats.say(chat=chat, text="Hello")
    before = chats.sides_of(chat)[0]
    chats.say(chat=chat, text="No, this")
    assert not chats.store_answer(side=before, answer={"role": "assistant", "content": "Late"})
    assert chats.sides_of(chat)[0].messages == [{"role": "user", "content": "No, this"}]


def test_a_dead_process_is_told_of_in_words(project: Project, policies: list[Policy], mia: User) -> None:
    chat = chats.begin(project=project, user=mia, policies=policies[:2])
    chats.say(chat=chat, text="Hello")
    side = chats.sides_of(chat)[0]
    gone = servings.Place("ready", address="127.0.0.1:9", token="x")

    async def listen() -> None:
        async for _ in answers.stream(side, gone, answers.begin(side)):
            pass

    with pytest.raises(answers.NoAnswer, match="cannot be reached"):
        asyncio.run(listen())
    with pytest.raises(answers.NoAnswer, match="cannot be reached"):
        answers.whole(side, gone, answers.begin(side))


def test_settings_out_of_range_are_refused(
    manager: Client, project: Project, policies: list[Policy], mia: User
) -> None:
    side = chats.sides_of(chats.begin(project=project, user=mia, policies=policies[:2]))[0]
    data = {"policy": policies[1].pk, "temperature": 9, "top_p": 0.5, "max_tokens": 10**6, "seed": ""}
    htmx = {"HX-Request": "true"}
    answer = manager.post(reverse("playground_choose", args=[side.pk]), data, headers=htmx)
    assert answer.status_code == 422
    answer = manager.post(
        reverse("playground_choose", args=[side.pk]), data | {"temperature": 0, "max_tokens": 9}, headers=htmx
    )
    assert answer.status_code == 200
    side.refresh_from_db()
    assert (side.policy, side.temperature, side.max_tokens, side.seed) == (policies[1], 0, 9, None)


def test_a_given_seed_counts_on_with_every_turn(project: Project, policies: list[Policy], mia: User) -> None:
    side = chats.sides_of(chats.begin(project=project, user=mia, policies=policies[:2]))[0]
    side.seed, side.messages = 7, []
    assert answers.begin(side).seed == 7
    side.messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert answers.begin(side).seed == 8


def test_nobody_else_reads_or_writes_a_chat(
    client: Client, project: Project, policies: list[Policy], mia: User, ann: User
) -> None:
    chat = chats.begin(project=project, user=mia, policies=policies[:2])
    side = chats.sides_of(chat)[0]
    other = factories.make_user("moe", project, "manager")
    addresses = [reverse(f"playground_{name}", args=[side.pk]) for name in ("side", "place")]
    changes = [reverse(f"playground_{name}", args=[side.pk]) for name in ("choose", "go_on", "again")]
    for user in (ann, other):
        client.force_login(user)
        assert all(client.get(address).status_code == 404 for address in addresses)
        assert all(client.post(address).status_code == 404 for address in changes)
        assert client.post(reverse("playground_say", args=[project.slug]), {"text": "x"}).status_code == 404
    client.force_login(ann)
    assert client.get(reverse("playground", args=[project.slug])).status_code == 404


def test_a_policy_of_another_project_cannot_be_chosen(
    manager: Client, project: Project, policies: list[Policy]
) -> None:
    elsewhere = factories.make_policy(factories.make_project("Other"), "theirs")
    elsewhere.location = "org/theirs"
    elsewhere.save()
    data = {"left": policies[0].pk, "right": elsewhere.pk}
    assert manager.post(reverse("playground", args=[project.slug]), data).status_code == 422


def test_without_seats_the_page_says_so(policies: list[Policy], settings: Any) -> None:
    settings.PLAYGROUND_SEATS = 0
    Worker.objects.create(name="w", device="cpu:0", seen_at=timezone.now())
    servings.want(policies[0])
    assert "RATCHET_PLAYGROUND_SEATS is 0" in servings.place_of(policies[0].pk).message


@pytest.mark.slow
def test_the_stub_speaks_as_the_server_does(
    policies: list[Policy], worker: TrainingWorker, mia: User
) -> None:
    """Streams end with a reason and a count, or the answer broke off."""
    chat = chats.begin(project=policies[0].project, user=mia, policies=policies[:2])
    chats.say(chat=chat, text="Hello")
    holds(worker, policies[0])
    side = chats.sides_of(chat)[0]
    answer = answers.begin(side)

    async def listen() -> list[str]:
        place = await asyncio.to_thread(lambda: place_now)
        return [piece async for piece in answers.stream(side, place, answer)]

    place_now = servings.place_of(policies[0].pk)
    pieces = asyncio.run(listen())
    assert len(pieces) == 3 and "".join(pieces) == answer.text
    assert (answer.finish, answer.tokens) == ("stop", 3)
    assert json.loads(json.dumps(answer.message()))["first_ms"] >= 0

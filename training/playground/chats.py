"""What a manager does in the playground: begin, say, go on with one side, clear, choose other settings.

Answers come from outside (training.playground.answers); here they are only stored, and only where nothing
else happened to that side meanwhile.
"""

from typing import Any

from django.contrib.auth.models import User
from django.db import transaction
from django.db.models import F

from labeling.models import Policy, Project
from labeling.models.projects import AnyUser
from training.ingredients import trained_policies
from training.models import Chat, ChatSide
from training.playground import servings
from training.results import storable

LONGEST_MESSAGE = 20_000  # characters


class ChatRefused(Exception):
    """That cannot be said or done; the message says why."""


def chat_of(project: Project, user: User) -> Chat | None:
    return Chat.objects.filter(project=project, user=user).first()


def sides_of(chat: Chat) -> list[ChatSide]:
    return list(chat.sides.select_related("policy", "chat__project"))


def side_of(user: AnyUser, side_id: int) -> ChatSide | None:
    """A side of the person's own chat in a project that they still manage."""
    mine = ChatSide.objects.filter(
        chat__user=user.pk or 0, chat__project__in=Project.objects.managed_by(user)
    )
    return mine.select_related("policy", "chat__project").filter(pk=side_id).first()


def likely_policies(project: Project) -> list[Policy]:
    """The two that somebody wants to compare: the newest candidate or policy, and the current one."""
    known = list(trained_policies(project)[:50])
    current = next((policy for policy in known if policy.pk == project.current_policy_id), None)
    newest = next((policy for policy in known if policy.state == Policy.State.CANDIDATE), None)
    first = newest or current or (known[0] if known else None)
    second = current if first != current else next((p for p in known if p != first), None)
    second = second or first
    return [policy for policy in (second, first) if policy is not None]


@transaction.atomic
def begin(*, project: Project, user: User, policies: list[Policy]) -> Chat:
    """The person's chat in a project, new or with other policies; its history stays."""
    chat = Chat.objects.get_or_create(project=project, user=user)[0]
    for place, policy in enumerate(policies):
        ChatSide.objects.update_or_create(chat=chat, place=place, defaults={"policy": policy})
        servings.want(policy)
    return chat


def choose(*, side: ChatSide, policy: Policy, **sampling: Any) -> None:
    """Another policy or other settings, from the next answer on."""
    ChatSide.objects.filter(pk=side.pk).update(policy=policy, turn=F("turn") + 1, **sampling)
    servings.want(policy)


def say(*, chat: Chat, text: str) -> None:
    """The same words to both sides. Raises ChatRefused."""
    text = storable(text).strip()
    if not text:
        raise ChatRefused("Write something first.")
    if len(text) > LONGEST_MESSAGE:
        raise ChatRefused(f"That is longer than {LONGEST_MESSAGE:,} characters.")
    with transaction.atomic():
        for side in chat.sides.select_for_update(of=("self",)).select_related("policy"):
            # What was asked before and never answered is asked anew in these words.
            history = side.messages[:-1] if side.is_asked else side.messages
            _change(side, [*history, {"role": "user", "content": text}])
            servings.want(side.policy)


def clear(*, chat: Chat) -> None:
    with transaction.atomic():
        for side in chat.sides.select_for_update(of=("self",)):
            _change(side, [])


def go_on_with(*, side: ChatSide) -> None:
    """Both sides have this one's history from now on."""
    for other in side.chat.sides.exclude(pk=side.pk):
        _change(other, side.messages)


def ask_again(*, side: ChatSide) -> None:
    """Leave the last answer out, and wait for another one."""
    if side.messages and not side.is_asked and _change(side, side.messages[:-1]):
        servings.want(side.policy)


def store_answer(*, side: ChatSide, answer: dict[str, Any]) -> bool:
    """False, storing nothing, when the side has changed since it was read: another tab, another message."""
    return _change(side, [*side.messages, {**answer, "content": storable(answer["content"])}])


def _change(side: ChatSide, messages: list[dict[str, Any]]) -> bool:
    rows = ChatSide.objects.filter(pk=side.pk, turn=side.turn)
    return rows.update(messages=messages, turn=F("turn") + 1) == 1

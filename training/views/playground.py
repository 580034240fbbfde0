"""The playground: two policies side by side. Answers stream; without JavaScript a form brings them whole."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from labeling.models import Project
from labeling.rendering import shown
from training import runs
from training.forms.playground import BeginForm, SayForm, SideForm
from training.ingredients import trained_policies
from training.models import Chat, ChatSide
from training.playground import answers, chats, servings
from training.playground.answers import Answer, NoAnswer
from training.playground.chats import side_of

PATIENCE_SECONDS = 25  # of a page without JavaScript, for a policy to be loaded
FINISHES = {"length": "cut at the limit", "stopped": "stopped by you"}


@login_required
@require_http_methods(["GET", "HEAD", "POST"])
def playground(request: HttpRequest, slug: str) -> HttpResponse:
    project = get_object_or_404(Project.objects.managed_by(request.user), slug=slug)
    assert request.user.is_authenticated
    likely = chats.likely_policies(project)
    asked = request.GET.get("policy", "")
    initial = dict(zip(("left", "right"), [policy.pk for policy in likely], strict=False))
    if asked.isascii() and asked.isdigit() and len(asked) < 19:
        initial["right"] = int(asked)
    form = BeginForm(request.POST if request.method == "POST" else None, project=project, initial=initial)
    if request.method == "POST" and form.is_valid():
        chats.begin(
            project=project,
            user=request.user,
            policies=[form.cleaned_data["left"], form.cleaned_data["right"]],
        )
        return redirect("playground", slug)
    chat = chats.chat_of(project, request.user)
    choosing = chat is None or bool(asked) or form.is_bound
    context = {
        "project": project,
        "workers": runs.workers_alive(),
        "form": form,
        "choosing": choosing,
        "has_policies": trained_policies(project).exists(),
        **(_chat_context(chat) if chat is not None and not choosing else {}),
    }
    return render(request, "training/playground/page.html", context, status=422 if form.errors else 200)


@login_required
@require_POST
def say(request: HttpRequest, slug: str) -> HttpResponse:
    chat = _chat(request, slug)
    form = SayForm(request.POST)
    text = form.cleaned_data["text"] if form.is_valid() else ""
    try:
        chats.say(chat=chat, text=text)
    except chats.ChatRefused as refusal:
        return _after(request, chat, refused=str(refusal), draft=text)
    if not _is_htmx(request):
        _answer_whole(request, chats.sides_of(chat))
    return _after(request, chat)


@login_required
@require_POST
def clear(request: HttpRequest, slug: str) -> HttpResponse:
    chat = _chat(request, slug)
    chats.clear(chat=chat)
    return _after(request, chat)


@login_required
@require_safe
def side(request: HttpRequest, side_id: int) -> HttpResponse:
    """One side as it stands: what the page asks for when an answer has come to its end."""
    found = _side(request, side_id)
    return render(request, "training/playground/_side.html", {"side": _shown(found)})


@login_required
@require_safe
def place(request: HttpRequest, side_id: int) -> HttpResponse:
    """Whether the side's policy is in memory; an open page asks again."""
    found = _side(request, side_id)
    return render(request, "training/playground/_place.html", {"side": _shown(found)})


@login_required
@require_POST
def choose(request: HttpRequest, side_id: int) -> HttpResponse:
    found = _side(request, side_id)
    form = SideForm(request.POST, instance=found)
    if form.is_valid():
        values = dict(form.cleaned_data)
        chats.choose(side=found, policy=values.pop("policy"), **values)
        return _after_side(request, side_id)
    if _is_htmx(request):
        shown = {**_shown(found), "form": form}
        return render(request, "training/playground/_side.html", {"side": shown}, status=422)
    for name, errors in form.errors.items():
        messages.error(request, f"{form.fields[name].label if name in form.fields else name}: {errors[0]}")
    return redirect("playground", found.chat.project.slug)


@login_required
@require_POST
def go_on_with(request: HttpRequest, side_id: int) -> HttpResponse:
    found = _side(request, side_id)
    chats.go_on_with(side=found)
    return _after(request, found.chat)


@login_required
@require_POST
def ask_again(request: HttpRequest, side_id: int) -> HttpResponse:
    found = _side(request, side_id)
    chats.ask_again(side=found)
    if not _is_htmx(request):
        _answer_whole(request, [_side(request, side_id)])
    return _after_side(request, side_id)


def _chat(request: HttpRequest, slug: str) -> Chat:
    project = get_object_or_404(Project.objects.managed_by(request.user), slug=slug)
    assert request.user.is_authenticated
    chat = chats.chat_of(project, request.user)
    if chat is None:
        raise Http404("There is no chat yet.")
    return chat


def _side(request: HttpRequest, side_id: int) -> ChatSide:
    found = side_of(request.user, side_id)
    if found is None:
        raise Http404("There is no such side of a chat of yours.")
    return found


def _is_htmx(request: HttpRequest) -> bool:
    return request.headers.get("HX-Request") == "true"


def _after(request: HttpRequest, chat: Chat, *, refused: str = "", draft: str = "") -> HttpResponse:
    """The whole chat as it stands; a page without JavaScript is sent back to."""
    if _is_htmx(request):
        context = {**_chat_context(chat), "project": chat.project, "refused": refused}
        if draft:
            context["say"] = SayForm(initial={"text": draft})
        return render(request, "training/playground/_chat.html", context, status=422 if refused else 200)
    if refused:
        messages.error(request, refused)
    return redirect("playground", chat.project.slug)


def _after_side(request: HttpRequest, side_id: int) -> HttpResponse:
    found = _side(request, side_id)
    if _is_htmx(request):
        return render(request, "training/playground/_side.html", {"side": _shown(found)})
    return redirect("playground", found.chat.project.slug)


def _chat_context(chat: Chat) -> dict[str, Any]:
    sides = chats.sides_of(chat)
    return {
        "chat": chat,
        "sides": [_shown(side) for side in sides],
        "has_history": any(side.messages for side in sides),
        "say": SayForm(),
    }


def _shown(side: ChatSide) -> dict[str, Any]:
    """A side as its template reads it. What was said is rendered: all of it is hostile."""
    history = [
        {
            **message,
            "html": shown(message["content"]),
            "is_answer": message["role"] == "assistant",
            "ending": FINISHES.get(message.get("finish", ""), ""),
            "is_last": number == len(side.messages),
        }
        for number, message in enumerate(side.messages, 1)
    ]
    return {
        "pk": side.pk,
        "letter": "AB"[side.place % 2],
        "policy": side.policy,
        "row": side,
        "history": history,
        "is_asked": side.is_asked,
        "has_answer": bool(side.messages) and not side.is_asked,
        "place": servings.place_of(side.policy_id),
        "form": SideForm(instance=side),
        "project": side.chat.project,
    }


def _answer_whole(request: HttpRequest, sides: list[ChatSide]) -> None:
    """Both at a time. What cannot be answered now is said, and can be asked for again."""
    asked = [side for side in sides if side.is_asked]
    places = _ready_places(asked)
    ready = [
        (side, places[side.pk], answers.begin(side)) for side in asked if places[side.pk].state == "ready"
    ]
    with ThreadPoolExecutor(max_workers=2) as pool:
        troubles = list(pool.map(_whole, ready))
    for (side, _, answer), trouble in zip(ready, troubles, strict=True):
        if trouble:
            messages.error(request, f"{side.policy}: {trouble}")
        else:
            chats.store_answer(side=side, answer=answer.message())
            servings.still_used(side.policy_id)
    for side in asked:
        if places[side.pk].state != "ready":
            messages.warning(request, f"{side.policy}: {places[side.pk].message}")


def _whole(asked: tuple[ChatSide, servings.Place, Answer]) -> str:
    try:
        answers.whole(*asked)
    except NoAnswer as none:
        return str(none)
    return ""


def _ready_places(sides: list[ChatSide]) -> dict[int, servings.Place]:
    """Where they are, once all are there or nothing more is to be hoped for in a page's time."""
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        places = {side.pk: servings.place_of(side.policy_id) for side in sides}
        hopeful = any(place.state == "loading" for place in places.values()) or (
            any(place.state == "waiting" for place in places.values()) and runs.workers_alive()
        )
        if not hopeful or time.monotonic() > end:
            return places
        time.sleep(0.5)

"""Runs that write by a constitution: their page to begin with, and what their page shows."""

from dataclasses import dataclass
from typing import Any

from django.db.models import Q
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.safestring import SafeString

from labeling import audits
from labeling.constitutions import latest
from labeling.models import PreferenceDataset, Project
from labeling.rendering import shown
from training import constitutional, made_datasets, runs
from training.forms.constitutional import ConstitutionalForm
from training.ingredients import MAKING, trained_policies
from training.models import Run
from training.results import number_in
from training.rlhf.methods import METHODS
from training.views import method_choice

SHOWN = 4  # rows on a run's page
OUTCOMES = {
    "revised": ("revised", "good"),
    "unchanged": ("left as it was", ""),
    "cut": ("cut, left out", "warn"),
    "empty": ("empty, left out", "warn"),
    "preferred": ("one preferred", "good"),
    "tie": ("tie", ""),
    "undecided": ("no preference, left out", "warn"),
    "same text": ("same text twice, left out", "warn"),
}
VERDICTS = {
    "first": "for the first",
    "second": "for the second",
    "tie": "ties",
    "inconsistent": "order-inconsistent: changed when the two were exchanged",
    "nonsense": "nonsense: not A, B or TIE",
}


@dataclass(frozen=True)
class Count:
    name: str
    count: int
    tone: str = ""


@dataclass(frozen=True)
class MadeFigures:
    outcomes: list[Count]
    verdicts: list[Count]
    by_principle: list[tuple[str, list[int]]]  # words, and a count for each of `columns`
    columns: list[str]


@dataclass(frozen=True)
class Part:
    title: str
    html: SafeString
    tone: str = ""  # good or bad, as in a dataset's rows
    note: str = ""


@dataclass(frozen=True)
class MadeSample:
    prompt: SafeString
    parts: list[Part]
    facts: str


def run_new(request: HttpRequest, project: Project, method: str, like: Run | None) -> HttpResponse:
    """The form of a method that makes data; what is missing stands in its place."""
    like = like if like and like.method == method else None
    form = ConstitutionalForm(
        request.POST if request.method == "POST" else None, project=project, method=method, like=like
    )
    if request.method == "POST" and form.is_valid():
        try:
            run = constitutional.create_run(
                project=project,
                method=method,
                policy=form.cleaned_data["policy"],
                constitution=form.cleaned_data["constitution"],
                config=form.config,
                created_by=request.user if request.user.is_authenticated else None,
                start_when_ready=form.cleaned_data["start_when_ready"],
            )
            return redirect("run", run.pk)
        except runs.RunRefused as refusal:
            form.refuse(str(refusal).removeprefix(f"{runs.UNFIT} "))
    context = {
        "project": project,
        "form": form,
        "like": like,
        "method": method,
        "learns": METHODS[method],
        "when": method_choice.WHEN[method],
        "groups": method_choice.choices(project),
        "is_chosen": True,
        "constitution": latest(project),
        "has_prompts": constitutional.has_prompts(project),
        "has_policies": trained_policies(project).exists(),
    }
    return render(request, "training/constitutional_new.html", context, status=422 if form.errors else 200)


def made_figures(run: Run) -> MadeFigures | None:
    """What a complete run counted; None for other runs."""
    found = run.evaluation.get("made") if run.method in MAKING else None
    if not isinstance(found, dict):
        return None
    outcomes = [
        Count(words, int(number), tone)
        for name, (words, tone) in OUTCOMES.items()
        if (number := number_in(found, "outcomes", name)) is not None
    ]
    verdicts = [
        Count(words, int(number))
        for name, words in VERDICTS.items()
        if (number := number_in(found, "verdicts", name)) is not None
    ]
    columns = list(VERDICTS) if verdicts else ["times drawn"]
    by_principle = []
    for place, principle in enumerate(run.constitution.principles if run.constitution else [], start=1):
        said = (found.get("principles") or {}).get(str(place))
        counts = [int(number_in(said, name) or 0) for name in columns] if verdicts else [int(said or 0)]
        by_principle.append((str(principle["text"]), counts))
    return MadeFigures(outcomes, verdicts, by_principle, columns)


def unaudited(run: Run) -> list[PreferenceDataset]:
    """Of what a run learns from, the AI's preferences that no person has judged a sample of."""
    if run.method in MAKING or run.dataset_id is None:
        return []
    parts = PreferenceDataset.objects.filter(Q(pk=run.dataset_id) | Q(mixed_into__run=run)).distinct()
    return list(audits.unaudited(parts))


def samples_of(run: Run) -> list[MadeSample]:
    """The first rows of a run, as people read them, also while it works."""
    if run.method not in MAKING:
        return []
    show = _revision if run.method == Run.Method.CRITIQUE_REVISION else _judged
    samples = []
    for line in made_datasets.first_lines(run, SHOWN):
        try:
            parts, facts = show(run, line)
            samples.append(MadeSample(shown(line["prompt"][-1]["content"]), parts, facts))
        except (KeyError, TypeError, ValueError, IndexError, AttributeError):
            continue  # the row of another version: the page shows the rest
    return samples


def _revision(run: Run, line: dict[str, Any]) -> tuple[list[Part], str]:
    parts = [Part("Answer", shown(line["answer"]["text"]), "", _cut(line["answer"]))]
    last = len(line["turns"])
    for number, turn in enumerate(line["turns"], start=1):
        which = f" {number}" if last > 1 else ""
        critique, revision = turn["critique"], turn["revision"]
        words = f"By the principle: {_principle(run, turn['principle'])}"
        parts.append(Part(f"Critique{which}", shown(critique["text"]), "", words))
        tone = "good" if number == last and line["outcome"] == "revised" else ""
        parts.append(Part(f"Revision{which}", shown(revision["text"]), tone, _cut(revision)))
    return parts, OUTCOMES[line["outcome"]][0]


def _judged(run: Run, line: dict[str, Any]) -> tuple[list[Part], str]:
    p = line["p"]
    tones = ("", "") if p in (None, 0.5) else ("good", "bad") if p > 0.5 else ("bad", "good")
    titles = {"good": "Preferred", "bad": "Not preferred", "": "Completion"}
    parts = [
        Part(titles[tone], shown(text["text"]), tone, _cut(text))
        for tone, text in zip(tones, line["completions"], strict=True)
    ]
    said = "; ".join(
        f"{_principle(run, one['principle'])} {_answers(one)}: {one['verdict']}" for one in line["said"]
    )
    return parts, said or OUTCOMES[line["outcome"]][0]


def _answers(said: dict[str, Any]) -> str:
    there, back = (str(said[name]).strip()[:40] or "nothing" for name in ("there", "back"))
    return f"“{there}”, exchanged “{back}”"


def _principle(run: Run, number: int) -> str:
    principles = run.constitution.principles if run.constitution else []
    return str(principles[number - 1]["text"]) if 0 < number <= len(principles) else f"principle {number}"


def _cut(text: dict[str, Any]) -> str:
    return "cut" if text["finish"] == "length" else ""

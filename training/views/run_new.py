"""What the page of a new run shows: the choice of a method, its form, and what makes a sweep of it."""

from typing import Any

from django import forms
from django.http import Http404, HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from labeling import audits
from labeling.models import Project
from training.forms.run import RunForm, usual_in_words
from training.forms.sweep import SweepForm
from training.ingredients import (
    OFFERED,
    RUNNABLE,
    TRAINABLE,
    can_be_learnt_from,
    datasets_to_learn_from,
    reward_models,
    trained_policies,
)
from training.models import Run
from training.recipes import rate_for
from training.rlhf.methods import METHODS
from training.rlhf.tuning_settings import KINDS
from training.views import method_choice
from training.views.judge_audits import audits_of


def new_run_context(request: HttpRequest, project: Project) -> dict[str, Any]:
    """Bound forms for a POST; which of the two counts, the address says."""
    like = run_like(request, project)
    dataset = project.datasets.filter(pk=_number(request, "dataset") or 0).first()
    asked = request.GET.get("method")
    method = asked or (like.method if like else method_choice.likely_method(project, dataset))
    if method not in RUNNABLE:
        method = Run.Method.REWARD_MODEL
    posted = request.POST if request.method == "POST" else None
    form = RunForm(posted, project=project, method=method, like=like, initial=_chosen_in(request, project))
    kinds = form.fields.get("kind", forms.Field())  # a judge audit trains nothing
    kinds.widget.attrs |= {  # without a script the empty field says the same when it is posted
        "hx-get": f"{reverse('usual_rate', args=[project.slug])}?method={method}",
        "hx-include": "[name=policy]",
        "hx-target": "#id_learning_rate_helptext",
        "hx-swap": "outerHTML",
        "hx-nonce": str(getattr(request, "csp_nonce", "")),  # what django-csp adds
    }
    is_sweep = posted is not None and "sweep-strategy" in posted and request.path.endswith("/sweeps/new/")
    sweep_form = None
    if method in TRAINABLE:
        with_model = form.initial.get("reward_model") is not None
        sweep_form = SweepForm(posted if is_sweep else None, method=method, has_reward_model=with_model)
    return {
        "project": project,
        "form": form,
        "sweep_form": sweep_form,
        "like": like,
        "method": method,
        "learns": METHODS[method],
        "when": method_choice.WHEN[method],
        "groups": method_choice.choices(project),
        "is_chosen": bool(asked or like or form.errors),
        "kept_dataset": dataset or (like.dataset if like else None),
        "has_rows": datasets_to_learn_from(project, method).exists(),
        "way_to_rows": method_choice.way_to_rows(project, method),
        "unfit": dataset if dataset and not can_be_learnt_from(dataset, method) else None,
        "judge_audits": audits_of(project) if form.may_ask_a_judge() else [],
        "has_policies": trained_policies(project).exists(),
        "unaudited": list(audits.unaudited(datasets_to_learn_from(project, method))),
    }


def asks_for_a_sweep(request: HttpRequest) -> bool:
    """Whether values to try were written: Enter in their fields presses the button of a single run."""
    return any(key.startswith("sweep-values_") and value for key, value in request.POST.items())


def usual_rate_help(request: HttpRequest, project: Project) -> SafeString:
    """The help of the learning rate's field for the kind of tuning and the policy that were chosen."""
    method, kind = request.GET.get("method", ""), request.GET.get("kind", "")
    if method not in TRAINABLE or kind not in KINDS:
        raise Http404
    policy = trained_policies(project).filter(pk=_number(request, "policy") or 0).first()
    said = usual_in_words(rate_for(method=method, policy=policy, kind=kind), kind)
    return format_html('<span class="help" id="id_learning_rate_helptext">{}</span>', said)


def run_like(request: HttpRequest, project: Project) -> Run | None:
    """The run whose settings a link to the form names."""
    pk = _number(request, "like")
    return project.runs.filter(method__in=OFFERED, pk=pk).first() if pk is not None else None


def _chosen_in(request: HttpRequest, project: Project) -> dict[str, Any]:
    """Dataset, policy and reward model that a link to the form names, or the models of an ensemble."""
    names = ("dataset", "policy", "reward_model")
    found: dict[str, Any] = {name: number for name in names if (number := _number(request, name)) is not None}
    first = _number(request, "ensemble")
    if first is not None:
        models = reward_models(project).filter(run__ensemble=first)
        found["ensemble_models"] = [str(one.run_id) for one in models]
    return found


def _number(request: HttpRequest, name: str) -> int | None:
    value = request.GET.get(name, "")
    return int(value) if value.isascii() and value.isdigit() and len(value) < 19 else None

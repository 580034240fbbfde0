"""The project page: the whole story on one page, and what to do next."""

from django.conf import settings
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, render
from django.views.decorators.http import require_safe

from labeling.models import Project
from training import runs
from training.views import story as stories
from training.views import story_charts
from training.views.comparing import comparing

SWEEPS = 5  # the newest that the page of a project links to


@login_required
@require_safe
def project(request: HttpRequest, slug: str) -> HttpResponse:
    found = get_object_or_404(
        Project.objects.managed_by(request.user).select_related("current_policy"), slug=slug
    )
    story = stories.story_of(found)
    candidate = story.candidate
    return render(
        request,
        "training/project.html",
        {
            "project": found,
            "story": story,
            "action": stories.next_action(story),
            "win_rate_chart": story_charts.win_rate_chart(story),
            "reward_chart": story_charts.reward_chart(story),
            "candidate_decision": story.decision_on(candidate) if candidate else None,
            "comparing": comparing(candidate) if candidate else None,
            "workers": runs.workers_alive(),
            "has_servers": bool(settings.MODEL_SERVERS),
            "sweeps": found.sweeps.all()[:SWEEPS],
        },
    )


@login_required
@require_safe
def worker_notice(request: HttpRequest) -> HttpResponse:
    """The line that says whether anybody would take up a run; asked again by open pages."""
    get_object_or_404(Project.objects.managed_by(request.user)[:1])
    return render(request, "training/_worker_notice.html", {"workers": runs.workers_alive()})

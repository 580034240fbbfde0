"""A person's own page: tokens for the API (hashed, expiring, shown once), and the way to another password."""

from django.contrib.auth.decorators import login_required
from django.contrib.auth.models import User
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST
from knox.models import AuthToken


class SignedInRequest(HttpRequest):
    user: User


@never_cache
@login_required
@require_http_methods(["GET", "POST"])
def account(request: SignedInRequest) -> HttpResponse:
    shown = AuthToken.objects.create(user=request.user)[1] if request.method == "POST" else ""
    own = AuthToken.objects.filter(user=request.user).order_by("-created")
    return render(request, "registration/account.html", {"tokens": own, "shown": shown})


@login_required
@require_POST
def token_delete(request: SignedInRequest, token_key: str) -> HttpResponse:
    get_object_or_404(AuthToken, user=request.user, token_key=token_key).delete()
    return redirect("account")

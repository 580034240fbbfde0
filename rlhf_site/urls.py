"""All addresses: judging, training, sign-in, administration."""

from django.contrib import admin
from django.contrib.auth import views as auth_views
from django.urls import include, path

from rlhf_site import tokens

urlpatterns = [
    path("login/", auth_views.LoginView.as_view(redirect_authenticated_user=True), name="login"),
    path("logout/", auth_views.LogoutView.as_view(), name="logout"),
    path("tokens/", tokens.tokens, name="tokens"),
    path("tokens/<str:token_key>/revoke/", tokens.token_delete, name="token_delete"),
    path("api/v1/", include("labeling.api.urls")),
    path("api/v1/", include("training.api_urls")),
    path("admin/", admin.site.urls),
    path("", include("labeling.urls")),
    path("", include("training.urls")),
]

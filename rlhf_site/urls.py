"""All addresses: judging, training, sign-in, administration."""

from django.contrib import admin
from django.contrib.auth import views as auth_views
from django.urls import include, path, reverse_lazy

from rlhf_site import account

urlpatterns = [
    path("login/", auth_views.LoginView.as_view(redirect_authenticated_user=True), name="login"),
    path("logout/", auth_views.LogoutView.as_view(), name="logout"),
    path("account/", account.account, name="account"),
    path("account/tokens/<str:token_key>/revoke/", account.token_delete, name="token_delete"),
    path(
        "account/password/",
        auth_views.PasswordChangeView.as_view(success_url=reverse_lazy("password_changed")),
        name="password_change",
    ),
    path("account/password/changed/", auth_views.PasswordChangeDoneView.as_view(), name="password_changed"),
    path("api/v1/", include("labeling.api.urls")),
    path("api/v1/", include("training.api_urls")),
    path("admin/", admin.site.urls),
    path("", include("labeling.urls")),
    path("", include("training.urls")),
]

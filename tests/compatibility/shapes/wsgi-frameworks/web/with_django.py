import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path
from django.utils import timezone

settings.configure(
    SECRET_KEY="for a test only",
    ROOT_URLCONF=__name__,
    ALLOWED_HOSTS=["*"],
    USE_TZ=True,
    TIME_ZONE="Europe/Berlin",
    MIDDLEWARE=["django.middleware.common.CommonMiddleware", "django.middleware.security.SecurityMiddleware"],
)
django.setup()


def detail(request, question):
    return HttpResponse(f"Question {question} at {timezone.localtime().tzname()}")


urlpatterns = [path("polls/<int:question>", detail)]
app = get_wsgi_application()

"""A Django project as its authors write one: models, the admin, sessions, migrations; its data in SQLite. No tests here."""

from __future__ import annotations

SETTINGS = """
SECRET_KEY = "for a test only"
ROOT_URLCONF = "site_urls"
ALLOWED_HOSTS = ["*"]
USE_TZ = True
DEBUG = False
INSTALLED_APPS = ["django.contrib.admin", "django.contrib.auth", "django.contrib.contenttypes",
                  "django.contrib.sessions", "django.contrib.messages", "notes"]
MIDDLEWARE = ["django.contrib.sessions.middleware.SessionMiddleware", "django.middleware.common.CommonMiddleware",
              "django.middleware.csrf.CsrfViewMiddleware", "django.contrib.auth.middleware.AuthenticationMiddleware",
              "django.contrib.messages.middleware.MessageMiddleware"]
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True, "OPTIONS": {
    "context_processors": ["django.template.context_processors.request", "django.contrib.auth.context_processors.auth",
                           "django.contrib.messages.context_processors.messages"]}}]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "main"}}
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]  # the others take seconds on a busy test machine
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
STATIC_URL = "/static/"
"""

APP = """
import os

os.environ["DJANGO_SETTINGS_MODULE"] = "site_settings"

from django.core.wsgi import get_wsgi_application

app = get_wsgi_application()


def migrate():
    from django.contrib.auth.models import User
    from django.core.management import call_command

    call_command("migrate", verbosity=0, interactive=False)
    if not User.objects.filter(username="ada").exists():
        User.objects.create_superuser("ada", "ada@example.org", "lovelace")
"""

URLS = """
from django.contrib import admin
from django.urls import path

from notes import views

urlpatterns = [path("", views.index), path("add", views.add), path("admin/", admin.site.urls)]
"""

VIEWS = """
from django.db import connection, transaction
from django.db.migrations.recorder import MigrationRecorder
from django.http import HttpResponse, JsonResponse
from django.utils import timezone

from notes.models import Note


def index(request):
    applied = MigrationRecorder(connection).applied_migrations()
    return JsonResponse({
        "notes": Note.objects.count(), "fields": sorted(f.name for f in Note._meta.fields),
        "applied": sorted(name for app, name in applied if app == "notes"), "all": len(applied),
    })


def add(request):
    with transaction.atomic():
        Note.objects.create(text=request.GET.get("text", "n"), at=timezone.now())
    return HttpResponse("kept")
"""

MODELS = """
from django.db import models


class Note(models.Model):
    text = models.CharField(max_length=100)
    at = models.DateTimeField()
"""

FIRST = """
from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True
    operations = [migrations.CreateModel("Note", [
        ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
        ("text", models.CharField(max_length=100)), ("at", models.DateTimeField()),
    ])]
"""

SECOND = """
from django.db import migrations, models


def shout(apps, schema_editor):
    for note in apps.get_model("notes", "Note").objects.all():
        note.author = note.text.upper()
        note.save()


class Migration(migrations.Migration):
    dependencies = [("notes", "0001_initial")]
    operations = [
        migrations.AddField("note", "author", models.CharField(max_length=100, null=True)),
        migrations.RunPython(shout, migrations.RunPython.noop),
        migrations.AddIndex("note", models.Index(fields=["at"], name="note_at")),
    ]
"""

FILES = {
    "requirements.txt": "django\n",
    "site_settings.py": SETTINGS,
    "site_urls.py": URLS,
    "app.py": APP,
    "notes/__init__.py": "",
    "notes/models.py": MODELS,
    "notes/views.py": VIEWS,
    "notes/admin.py": "from django.contrib import admin\nfrom notes.models import Note\n\nadmin.site.register(Note)\n",
    "notes/migrations/__init__.py": "",
    "notes/migrations/0001_initial.py": FIRST,
}
"""The first release."""

NEXT = {
    "notes/migrations/0002_author.py": SECOND,
    "notes/models.py": MODELS
    + "    author = models.CharField(max_length=100, null=True)\n\n"
    + '    class Meta:\n        indexes = [models.Index(fields=["at"], name="note_at")]\n',
}
"""What the second changes."""

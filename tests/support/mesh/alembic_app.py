"""A Flask app whose models are SQLAlchemy's and whose tables Alembic migrates, in two versions. Not here: any test."""

from __future__ import annotations

APP = """
import json
import os

from alembic import command
from alembic.config import Config
from flask import Flask, request
from sqlalchemy import create_engine, inspect, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.pool import NullPool

app = Flask(__name__)
engine = create_engine("sqlite:///main.db", poolclass=NullPool)


class Base(DeclarativeBase):
    pass


class Post(Base):
    __tablename__ = "posts"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
FIELD

def migrate():
    config = Config()
    config.set_main_option("script_location", os.path.join(os.path.dirname(__file__), "changes"))
    command.upgrade(config, "head")


@app.get("/")
def index():
    with Session(engine) as session:
        titles = list(session.scalars(select(Post.title).order_by(Post.id)))
    columns = sorted(one["name"] for one in inspect(engine).get_columns("posts"))
    return json.dumps({"titles": titles, "columns": columns, "knows": sorted(Post.__table__.columns.keys())})


@app.get("/add")
def add():
    with Session(engine) as session:
        session.add(Post(title=request.args["title"]))
        session.commit()
    return "added"
"""
ENVIRONMENT = """
from alembic import context
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

with create_engine("sqlite:///main.db", poolclass=NullPool).connect() as connection:
    context.configure(connection=connection, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()
"""
FIRST = """
import sqlalchemy as sa
from alembic import op

revision, down_revision = "0001", None


def upgrade():
    op.create_table("posts", sa.Column("id", sa.Integer, primary_key=True), sa.Column("title", sa.Text, nullable=False))
"""
SECOND = """
import sqlalchemy as sa
from alembic import op

revision, down_revision = "0002", "0001"


def upgrade():
    with op.batch_alter_table("posts") as posts:
        posts.add_column(sa.Column("likes", sa.Integer, server_default="0", nullable=False))
"""
FILES = {
    "app.py": APP.replace("FIELD", ""),
    "requirements.txt": "flask\nsqlalchemy\nalembic\n",
    "changes/env.py": ENVIRONMENT,
    "changes/script.py.mako": "",
    "changes/versions/first.py": FIRST,
}
NEXT = {
    "app.py": APP.replace("FIELD", '    likes: Mapped[int] = mapped_column(server_default="0")\n'),
    "changes/versions/second.py": SECOND,
}

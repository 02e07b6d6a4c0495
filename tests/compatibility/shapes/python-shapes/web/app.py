"""Ordinary things that an app does."""

import asyncio
import base64
import collections
import concurrent.futures
import contextlib
import csv
import dataclasses
import datetime
import decimal
import enum
import functools
import glob
import hashlib
import hmac
import io
import json
import logging
import os
import pathlib
import random
import re
import secrets
import sqlite3
import statistics
import string
import tempfile
import threading
import unittest.mock
import uuid
import zipfile
import zoneinfo

import freehold

HERE = pathlib.Path(__file__).parent


@dataclasses.dataclass
class Point:
    x: int = 1


class Colour(enum.Enum):
    RED = "red"


@functools.cache
def squared(number):
    return number * number


def own_files():
    return (
        (HERE / "data" / "words.txt").read_text().strip()
        + open("data/words.txt").read().strip()
        + str(glob.glob("data/*"))
    )


def temporary():
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "a.txt"
        path.write_text("kept")
        return path.read_text()


def zipped():
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", "b" * 1000)
    return zipfile.ZipFile(held).read("a").decode()[:2]


def database():
    with contextlib.closing(sqlite3.connect(":memory:")) as held:
        held.execute("create table t (a)")
        held.executemany("insert into t values (?)", [(1,), (2,)])
        return held.execute("select sum(a) from t").fetchone()[0]


def threads():
    seen = []
    workers = [threading.Thread(target=seen.append, args=(number,)) for number in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return seen


def pooled():
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        return sum(pool.map(squared, range(5)))


def gathered():
    async def one(number):
        await asyncio.sleep(0.001)
        return number

    async def every():
        return await asyncio.gather(one(1), one(2))

    return asyncio.run(every())


def to_thread():
    async def inner():
        return await asyncio.to_thread(squared, 7)

    return asyncio.run(inner())


def zones():
    return datetime.datetime(2026, 7, 1, tzinfo=zoneinfo.ZoneInfo("America/New_York")).isoformat()


def deep():
    try:
        json.loads("[" * 100_000)
    except RecursionError:
        return "too deep"


def logged():
    logging.getLogger("app").warning("said")
    return "said"


def namespace():
    from space.inner import deep

    return deep.NAME


def home():
    settings = pathlib.Path.home() / ".settings"
    settings.write_text("kept")
    return open(os.path.expanduser("~/.settings")).read()


SHAPES = {
    "own-files": own_files,
    "temporary": temporary,
    "zip": zipped,
    "sqlite": database,
    "threads": threads,
    "pool": pooled,
    "gather": gathered,
    "to-thread": to_thread,
    "zones": zones,
    "deep": deep,
    "logging": logged,
    "namespace": namespace,
    "dataclass": lambda: dataclasses.asdict(Point()),
    "enum": lambda: Colour("red").name,
    "csv": lambda: list(csv.DictReader(io.StringIO("a,b\n1,2"))),
    "decimal": lambda: decimal.Decimal("0.1") + decimal.Decimal("0.2"),
    "hash": lambda: hashlib.sha256(b"a").hexdigest()[:8] + hmac.new(b"k", b"m", "sha256").hexdigest()[:8],
    "home": home,
    "scrypt": lambda: hashlib.scrypt(b"a", salt=b"b", n=16384, r=8, p=1).hex()[:8],
    "pbkdf2": lambda: hashlib.pbkdf2_hmac("sha256", b"a", b"b", 1000).hex()[:8],
    "random": lambda: len({random.getrandbits(64), secrets.token_hex(), str(uuid.uuid4())}),
    "re": lambda: re.sub(r"(?P<a>\w)", r"<\g<a>>", "ab"),
    "base64": lambda: base64.b64encode(b"\xff\x00").decode(),
    "statistics": lambda: statistics.mean([1, 2, 3]),
    "template": lambda: string.Template("$a").substitute(a=1),
    "counter": lambda: collections.Counter("aab").most_common(1),
    "mock": unittest.mock.Mock(return_value=3),
    "environ": lambda: sorted(name for name in os.environ if name == "HOME"),
}


def handle(request):
    return freehold.Response(str(SHAPES[request.path[1:]]()))

"""One question to the person in a browser: a page on localhost, its answer, and the check that takes or refuses it.

The command prints a link; the code in its fragment never leaves the browser but to this process, and is good for one
answer. Not here: how pages are served (serving.py).
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping
from typing import TypeVar

import msgspec
from aiohttp import web

from cli.console.serving import origin_of, serving
from cli.errors import CommandError
from cli.text.output import Output

CODE_BYTES = 16
ANSWER_WAIT_S = 600.0
LINGER_S = 0.3
"""How long the page may still fetch after its answer was taken."""

T = TypeVar("T")
A = TypeVar("A")


def ask_in_browser(
    output: Output, port: int, question: Mapping[str, object], kind: type[A], take: Callable[[A], T], *, purpose: str
) -> T:
    """Ask at http://localhost:PORT; return what `take` makes of the answer, which it refuses with a CommandError.

    The person may try again after a refusal. Raises CommandError if nobody answers in ten minutes.
    """
    return asyncio.run(_ask(output, port, question, kind, take, purpose))


async def _ask(
    output: Output, port: int, question: Mapping[str, object], kind: type[A], take: Callable[[A], T], purpose: str
) -> T:
    code = secrets.token_urlsafe(CODE_BYTES)
    taken: asyncio.Future[T] = asyncio.get_running_loop().create_future()

    async def ask(_: web.Request) -> web.Response:
        return web.json_response(question)

    async def answer(request: web.Request) -> web.Response:
        if taken.done():
            return _no("this question was answered; go back to the terminal")
        try:
            said = msgspec.json.decode(await request.read(), type=kind)
            outcome = take(said)
        except msgspec.DecodeError:
            return _no("the answer is not what this page sends; load it again")
        except CommandError as error:
            return _no(str(error))
        if not taken.done():
            taken.set_result(outcome)
        return web.json_response({"taken": True})

    routes = {("GET", "/question"): ask, ("POST", "/answer"): answer}
    async with serving(port, code, "passkey.html", routes):
        output.note(f"Open this page in a browser on this machine, to {purpose}:\n  {origin_of(port)}/#{code}")
        try:
            wait = await asyncio.wait_for(taken, ANSWER_WAIT_S)
        except TimeoutError:
            raise CommandError(
                "nobody answered in the browser", next_step="run the command again", kind="no-answer"
            ) from None
        await asyncio.sleep(LINGER_S)
        return wait


def _no(why: str) -> web.Response:
    return web.json_response({"taken": False, "why": why}, status=422)

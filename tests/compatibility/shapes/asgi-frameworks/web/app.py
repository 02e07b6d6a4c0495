"""Four ASGI apps under one roof."""

import asyncio
import contextlib

import falcon
import falcon.asgi
from quart import Quart
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route

done = []


async def user(request):
    return JSONResponse({"user": request.path_params["id"]})


async def events(request):
    async def numbers():
        for number in range(3):
            yield f"data: {number}\n\n"
            await asyncio.sleep(0.01)

    return StreamingResponse(numbers(), media_type="text/event-stream")


async def state(request):
    return PlainTextResponse(request.state.said)


async def background(request):
    return PlainTextResponse("later", background=BackgroundTask(done.append, 1))


async def upload(request):
    async with request.form() as form:
        return PlainTextResponse(f"{form['f'].filename} {len(await form['f'].read())}")


async def gather(request):
    async def slow(number):
        await asyncio.sleep(0.01)
        return number

    return JSONResponse(await asyncio.gather(*(slow(number) for number in range(3))))


starlette = [
    Route("/users/{id:int}", user),
    Route("/events", events),
    Route("/state", state),
    Route("/background", background),
    Route("/upload", upload, methods=["POST"]),
    Route("/gather", gather),
]

quart = Quart(__name__)


@quart.get("/quart/hello")
async def hello():
    return {"name": "quart"}


class Things:
    async def on_get(self, req, resp):
        resp.media = {"is": "asynchronous"}


things = falcon.asgi.App()
things.add_route("/falcon/things", Things())


async def plain(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": scope["path"].encode()})


@contextlib.asynccontextmanager
async def lifespan(app):
    yield {"said": "begun"}


inner = Starlette(routes=[Mount("/starlette", routes=starlette)], lifespan=lifespan)


async def app(scope, receive, send):
    path = scope.get("path", "")
    chosen = quart if path.startswith("/quart") else things if path.startswith("/falcon") else inner
    await (plain if path == "/plain" else chosen)(scope, receive, send)

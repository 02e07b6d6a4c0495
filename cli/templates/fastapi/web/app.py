"""The @NAME@ app: an ordinary FastAPI app. `freehold` reaches the key-value store and the configuration."""

from typing import Annotated

from fastapi import FastAPI, Path
from pydantic import BaseModel

import freehold

app = FastAPI(title="@NAME@")


class Greeting(BaseModel):
    greeting: str
    visits: int


@app.get("/")
async def index() -> Greeting:
    visits = freehold.store("visits").increment("count")
    return Greeting(greeting=freehold.config.get("GREETING", "hello"), visits=visits)


@app.get("/api/visits")
async def visits() -> dict[str, int]:
    return {"visits": int(freehold.store("visits").get("count") or 0)}


@app.get("/api/squares/{number}")
async def square(number: Annotated[int, Path(le=1000)]) -> int:
    return number * number


@app.post("/api/echo")
async def echo(body: dict) -> dict:
    return body

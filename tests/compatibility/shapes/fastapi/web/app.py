"""FastAPI as its tutorial shows it."""

import datetime
from typing import Annotated

from fastapi import BackgroundTasks, Depends, FastAPI, File, Header, HTTPException, UploadFile
from fastapi.middleware.cors import CORSMiddleware
from pydantic import BaseModel, Field, ValidationError

app = FastAPI()
app.add_middleware(CORSMiddleware, allow_origins=["https://a.example"])
done = []


class Item(BaseModel):
    name: str = Field(min_length=2)
    price: float
    secret: str = "kept"


class Shown(BaseModel):
    name: str


def caller(x_token: Annotated[str, Header()]):
    return x_token


@app.get("/items/{item}")
def read(item: int, q: str | None = None):
    return {"item": item, "q": q}


@app.post("/items", status_code=201, response_model=Shown)
async def make(item: Item):
    return item


@app.get("/me")
def me(name: Annotated[str, Depends(caller)], tasks: BackgroundTasks):
    tasks.add_task(done.append, name)
    return name


@app.get("/none")
def none():
    raise HTTPException(404, "no such item")


@app.post("/upload")
async def upload(file: Annotated[UploadFile, File()]):
    return [file.filename, len(await file.read())]


@app.get("/pydantic")
def validated():
    class Dated(BaseModel):
        number: int
        day: datetime.date

    made = Dated.model_validate_json('{"number": "7", "day": "2026-07-01"}')
    try:
        Dated(number="x", day="2026-07-01")
    except ValidationError as error:
        return [made.number, made.day, error.error_count()]

"""SDKs whose parsers are written in Rust, as their documentation shows them, against imitations of what they call."""

import asyncio

import anthropic
import freehold
import openai

ASKED = [{"role": "user", "content": "hello"}]


def with_openai():
    given = {"base_url": freehold.config["UPSTREAM"] + "/openai", "api_key": "a"}
    client = openai.OpenAI(**given)
    said = client.chat.completions.create(model="m", messages=ASKED).choices[0].message.content
    try:
        client.models.retrieve("none")
    except openai.NotFoundError as error:
        refused = error.status_code

    async def streamed():
        pieces = await openai.AsyncOpenAI(**given).responses.create(model="m", input="hello", stream=True)
        return [piece.delta async for piece in pieces if piece.type == "response.output_text.delta"]

    return [said, refused, asyncio.run(streamed())]


def with_anthropic():
    client = anthropic.Anthropic(base_url=freehold.config["UPSTREAM"], api_key="a")
    return client.messages.create(model="m", max_tokens=10, messages=ASKED).content[0].text


def handle(request):
    return repr({"/openai": with_openai, "/anthropic": with_anthropic}[request.path]())

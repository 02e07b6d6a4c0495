"""What a JavaScript project may be made of beside scripts: tsconfig.json, JSX, files as values, and its environment."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cli.dev.inputs import is_input
from cli.project.find import open_project
from cli.project.javascript_build import outer_files
from tests.support.mesh.dev_process import serving

pytestmark = pytest.mark.skipif(shutil.which("npm") is None, reason="Node.js is not on this machine")

APP_TABLE = """
[app.{name}]
language = "typescript"
source = "apps/{name}"
entry = "app.tsx"
routes = ["/{name}"]
config = {{ GREETING = "good day", EMPTY = "" }}
"""
TSCONFIG = """{
  // comments and trailing commas are usual here
  "compilerOptions": { "jsx": "react", "jsxFactory": "h", "paths": { "@lib/*": ["./apps/web/lib/*"] }, },
}
"""
OWN = '{ "extends": "../../tsconfig.base.json", "compilerOptions": { "paths": { "@lib/*": ["./lib/*"] } } }'
BASE = '{ "compilerOptions": { "jsx": "react", "jsxFactory": "h" } }'
APP = """
import { h } from "@lib/h";
import page from "./page.html";
import style from "./style.css";
import picture from "./picture.svg";
import data from "./data.json";
import bytes from "./pixel.png";

const view = (name: string) => <p class="a">hello {name}</p>;

export default {
  fetch(request: Request, env: Record<string, string>): Response {
    return Response.json({
      view: view("you"), page, style, picture, data, bytes: [...bytes],
      env: [env.GREETING, env.EMPTY, env.NOTHING ?? null],
      process: [process.env.GREETING, process.env.EMPTY, process.env.NOTHING ?? null, process.env.NODE_ENV],
    });
  },
};
"""
FILES = {
    "lib/h.ts": "export const h = (tag: string, given: object, ...inner: string[]) =>"
    " `<${tag} ${JSON.stringify(given)}>${inner.join('')}`;\n",
    "page.html": "<p>page</p>", "style.css": "p { color: red }", "picture.svg": "<svg/>", "data.json": '{"a": [1]}',
}  # fmt: skip
ANSWER = {
    "view": '<p {"class":"a"}>hello you', "page": "<p>page</p>", "style": "p { color: red }", "picture": "<svg/>",
    "data": {"a": [1]}, "bytes": [0, 1, 200, 255], "env": ["good day", "", None],
    "process": ["good day", "", None, "production"],
}  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two apps one obeys the project's tsconfig.json, and one its own, which extends another of the project's."""
    above = tmp_path_factory.mktemp("sources")
    (above / "tsconfig.json").write_text('{ "compilerOptions": { "jsx": "preserve" } }')  # someone else's
    folder = above / "project"
    for name in ("web", "own"):
        (folder / "apps" / name / "lib").mkdir(parents=True)
        (folder / "apps" / name / "app.tsx").write_text(APP)
        (folder / "apps" / name / "pixel.png").write_bytes(b"\x00\x01\xc8\xff")
        for path, text in FILES.items():
            (folder / "apps" / name / path).write_text(text)
    tables = "".join(APP_TABLE.format(name=name) for name in ("web", "own"))
    (folder / "freehold.toml").write_text(f'[project]\nname = "parts"\n{tables}')
    (folder / "tsconfig.json").write_text(TSCONFIG)
    (folder / "tsconfig.base.json").write_text(BASE)
    (folder / "apps" / "own" / "tsconfig.json").write_text(OWN)
    return folder


@pytest.mark.parametrize("flags", [(), ("--exact",)], ids=["from source", "as a release"])
def test_tsconfig_assets_and_environment(flags: tuple[str, ...], project: Path) -> None:
    with serving(project, *flags) as process:
        assert json.loads(process.call("/web").text) == ANSWER
        assert json.loads(process.call("/own").text) == ANSWER


def test_what_lies_above_the_source_decides_the_build(project: Path) -> None:
    app = open_project(project).project.base.apps["own"]
    assert [name for name, _ in outer_files(app, project)] == ["tsconfig.base.json", "tsconfig.json"]
    for name, counts in {"tsconfig.base.json": True, "apps/jsconfig.json": True, "docs/tsconfig.json": False}.items():
        assert is_input(project, open_project(project).project, str(project / name)) == counts, name

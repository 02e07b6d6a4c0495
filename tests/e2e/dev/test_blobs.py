"""Blobs in JavaScript: objects stream from a request into a container and from there into an answer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.support.mesh.dev_process import serving

SOURCE = """
import { blobs } from "freehold";

export default {
  async fetch(request) {
    const url = new URL(request.url);
    const name = url.searchParams.get("name");
    const uploads = blobs("uploads");
    if (request.method === "PUT") {
      await uploads.put(name, request.body);
      return new Response("kept");
    }
    if (url.pathname === "/all") {
      await uploads.put("text", "0123456789");
      await uploads.put("bytes", new Uint8Array([0, 255]));
      await uploads.put("empty", new Blob([]));
      const part = await uploads.get("text", { range: { offset: 2, length: 3 } });
      const head = await uploads.head("text");
      const answer = {
        part: [part.size, await part.text()],
        bytes: [...(await (await uploads.get("bytes")).bytes())],
        empty: await (await uploads.get("empty")).text(),
        none: await uploads.get("none"),
        nothing: (await uploads.get("text", { range: { offset: 0, length: 0 } })).size,
        head: [head.name, head.size, head.uploaded.getFullYear() > 2000],
      };
      await uploads.delete(["bytes", "empty"]);
      answer.names = await uploads.list();
      try {
        blobs("secret");
      } catch (error) {
        answer.refused = error.message;
      }
      return Response.json(answer);
    }
    return new Response((await uploads.get(name)).body);
  },
};
"""


@pytest.mark.skipif(shutil.which("npm") is None, reason="Node.js is not on this machine")
@pytest.mark.parametrize("flags", [(), ("--exact",)], ids=["from source", "as a release"])
def test_objects_of_javascript(tmp_path: Path, flags: tuple[str, ...]) -> None:
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "app.js").write_text(SOURCE)
    (tmp_path / "freehold.toml").write_text(
        '[project]\nname = "objects"\n[app.web]\nlanguage = "javascript"\n'
        'source = "web"\nroutes = ["/"]\nblobs = ["uploads"]\n'
    )
    with serving(tmp_path, *flags) as process:
        answer = process.call("/all")
        assert answer.status == 200, (answer.text, process.logs)
        entry = json.loads(answer.text)
        assert "may not open the container 'secret'" in entry.pop("refused")
        assert entry == {
            "part": [3, "234"], "bytes": [0, 255], "empty": "", "none": None, "nothing": 0,
            "head": ["text", 10, True], "names": ["text"],
        }  # fmt: skip
        large = bytes(range(256)) * 8192
        assert process.call("/?name=large", "PUT", large).text == "kept"
        assert process.call("/?name=large").body == large

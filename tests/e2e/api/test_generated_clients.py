"""Clients that OpenAPI Generator makes of the API's document, in three languages: they compile and speak to a real node.

Those of openapi-typescript and openapi-python-client are beside the programs that use them (test_walk_scripts.py).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.api.test_walk_scripts import CLIENTS, World, world
from tests.support.npm import installed

__all__ = ["world"]
GENERATOR = "openapi-generator-cli==7.26.0"
PARTS = "apiTests=false,modelTests=false,apiDocs=false,modelDocs=false"

GO = """
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"os"
	"smoke/freehold"
)

func must(right bool, what any) {
	if !right {
		fmt.Println(what)
		os.Exit(1)
	}
}

func main() {
	ca, err := os.ReadFile(os.Getenv("FREEHOLD_CA"))
	must(err == nil, err)
	roots := x509.NewCertPool()
	must(roots.AppendCertsFromPEM(ca), "the authority is no certificate")
	settings := freehold.NewConfiguration()
	settings.Servers = freehold.ServerConfigurations{{URL: os.Getenv("FREEHOLD_URL")}}
	settings.HTTPClient = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	client := freehold.NewAPIClient(settings)
	known := context.WithValue(context.Background(), freehold.ContextAccessToken, os.Getenv("FREEHOLD_TOKEN"))
	node, _, err := client.NodeAPI.Node(known).Execute()
	must(err == nil, err)
	must(node.Name == "d", node)
	members, _, err := client.MeshAPI.Members(known).Execute()
	must(err == nil, err)
	must(len(members) == 1 && members[0].Node == node.Node, members)
	_, refused, err := client.NodeAPI.Node(context.Background()).Execute()
	must(err != nil && refused.StatusCode == 401, "a stranger was let in")
	fmt.Println("smoke passed")
}
"""

PYTHON = """
import os
import freehold_client as made
settings = made.Configuration(host=os.environ["FREEHOLD_URL"], access_token=os.environ["FREEHOLD_TOKEN"],
                              ssl_ca_cert=os.environ["FREEHOLD_CA"])
with made.ApiClient(settings) as client:
    node = made.NodeApi(client).node()
    assert node.name == "d"
    assert [one.node for one in made.MeshApi(client).members()] == [node.node]
settings.access_token = "fht1.wrong"
with made.ApiClient(settings) as client:
    try:
        made.NodeApi(client).node()
    except made.exceptions.UnauthorizedException as error:
        assert "caller.unsigned" in error.body
        print("smoke passed")
"""

TYPESCRIPT = """
import { Configuration, MeshApi, NodeApi, ResponseError } from "./freehold/index.js";
const given = { basePath: process.env.FREEHOLD_URL, accessToken: process.env.FREEHOLD_TOKEN };
const settings = new Configuration(given);
const node = await new NodeApi(settings).node();
if (node.name !== "d") throw new Error(node.name);
const members = await new MeshApi(settings).members();
if (members.length !== 1 || members[0]!.node !== node.node) throw new Error(String(members.length));
try {
  await new NodeApi(new Configuration({ ...given, accessToken: "fht1.wrong" })).node();
} catch (error) {
  if (error instanceof ResponseError && error.response.status === 401) console.log("smoke passed");
}
"""


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, in an environment of its own."""
    if shutil.which("java") is None:
        pytest.skip("needs Java: apt-get install default-jre-headless")
    folder = tmp_path_factory.mktemp("generator")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=120)
    done = subprocess.run([folder / "bin" / "pip", "install", "--quiet", GENERATOR], timeout=400, check=False)
    if done.returncode != 0:
        pytest.skip(f"{GENERATOR} cannot be installed here")
    return next(folder.rglob("openapi-generator.jar"))


def generate(generator: Path, world: World, folder: Path, language: str, into: str, **properties: str) -> None:
    (folder / "openapi.json").write_bytes(world.node.get("/v1/openapi.json"))
    more = ",".join(f"{name}={value}" for name, value in properties.items())
    command = ["java", "-Xmx512m", "-jar", generator, "generate", "-i", "openapi.json", "-g", language, "-o", into,
               "--global-property", PARTS, "--additional-properties", more]  # fmt: skip
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-4_000:] + done.stderr[-4_000:]


def smoked(world: World, folder: Path, command: list[str | Path], **more: str) -> None:
    table = {
        "FREEHOLD_TOKEN": world.tokens["bearer"], "FREEHOLD_URL": world.url, "FREEHOLD_CA": str(world.ca),
        "NODE_EXTRA_CA_CERTS": str(world.ca),
    }  # fmt: skip
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **table, **more},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.stdout == "smoke passed\n", done.stdout[-4_000:] + done.stderr[-4_000:]


@pytest.mark.long
def test_a_client_in_go(world: World, generator: Path, tmp_path: Path) -> None:
    if shutil.which("go") is None:
        pytest.skip("needs Go")
    generate(generator, world, tmp_path, "go", "freehold", packageName="freehold", withGoMod="false")
    (tmp_path / "go.mod").write_text("module smoke\n\ngo 1.21\n")
    (tmp_path / "main.go").write_text(GO)
    # Its generator's own library is no part of what it wrote.
    subprocess.run(["go", "mod", "tidy"], cwd=tmp_path, check=True, timeout=100)
    subprocess.run(["go", "vet", ".", "./freehold"], cwd=tmp_path, check=True, timeout=400)
    smoked(world, tmp_path, ["go", "run", "."])


@pytest.mark.long
def test_a_client_in_python(world: World, generator: Path, tmp_path: Path) -> None:
    generate(generator, world, tmp_path, "python", "made", packageName="freehold_client")
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True, timeout=120)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "./made"], cwd=tmp_path, check=True, timeout=400)
    (tmp_path / "smoke.py").write_text(PYTHON)
    smoked(world, tmp_path, [python, "smoke.py"])


@pytest.mark.long
def test_a_client_in_typescript(world: World, generator: Path, tmp_path: Path) -> None:
    generate(generator, world, tmp_path, "typescript-fetch", "freehold", importFileExtension=".js")
    tools = installed(CLIENTS)
    (tmp_path / "node_modules").symlink_to(tools / "node_modules")
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "smoke.ts").write_text(TYPESCRIPT)
    command = [tools / "node_modules" / ".bin" / "tsc", "--strict", "--target", "es2022", "--module", "nodenext",
               "--skipLibCheck", "--outDir", "out", "smoke.ts"]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout[-4_000:]
    smoked(world, tmp_path, ["node", "out/smoke.js"])

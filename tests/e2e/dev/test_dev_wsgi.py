"""A WSGI app in the sandbox behaves as PEP 3333 says, over real sockets. One app, one server, many questions."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator

import pytest

from tests.support.mesh.dev_process import DevProcess, serving

APP = """
import io, sys, time

def app(environ, start_response):
    path = environ["PATH_INFO"]
    text = [("Content-Type", "text/plain")]
    if path == "/environ":
        shown = {key: value for key, value in environ.items() if isinstance(value, str)}
        shown["wsgi"] = [environ["wsgi.url_scheme"], environ["wsgi.multithread"], environ["wsgi.input_terminated"]]
        start_response("200 OK", [("Content-Type", "application/json")])
        import json
        return [json.dumps(shown).encode()]
    if path == "/echo":
        start_response("200 OK", text)
        return iter(lambda: environ["wsgi.input"].read(1000), b"")
    if path == "/lines":
        start_response("200 OK", text)
        return [line.upper() for line in environ["wsgi.input"]]
    if path == "/ignore-body":
        start_response("200 OK", text)
        return [b"not read"]
    if path == "/stream":
        start_response("200 OK", text)
        def pieces():
            for number in range(3):
                yield b"piece %d\\n" % number
                time.sleep(0.3)
        return pieces()
    if path == "/write":
        write = start_response("201 Created", text)
        write(b"written ")
        return [b"and returned"]
    if path == "/cookies":
        start_response("200 OK", [("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")])
        return [b""]
    if path == "/boom":
        raise RuntimeError("the secret is out")
    if path == "/late-boom":
        start_response("200 OK", text)
        def pieces():
            yield b"x" * 100_000
            raise RuntimeError("in the middle")
        return pieces()
    if path == "/exc-info":
        try:
            start_response("200 OK", text)
            raise ValueError("changed my mind")
        except ValueError:
            start_response("503 Service Unavailable", text, sys.exc_info())
            return [b"sorry"]
    if path == "/silent":
        return [b"no start_response"]
    if path == "/closes":
        class Body:
            def __iter__(self):
                yield b"body"
            def close(self):
                print("body was closed", file=environ["wsgi.errors"])
        start_response("200 OK", text)
        return Body()
    if path == "/file":
        with open(__file__.rpartition("/")[0] + "/data/words.txt") as file:
            words = file.read()
        import os
        start_response("200 OK", text)
        return [words.encode(), str(sorted(os.listdir(os.path.dirname(__file__) + "/data"))).encode()]
    if path == "/write-file":
        try:
            open(__file__, "w")
        except OSError as error:
            start_response("200 OK", text)
            return [type(error).__name__.encode()]
    if path == "/late":
        import decimal, textwrap, own_module
        start_response("200 OK", text)
        return [str(decimal.Decimal("0.1") + own_module.VALUE).encode()]
    if path == "/thread":
        import threading
        done = []
        threading.Thread(target=done.append, args=(b"done",)).start()
        start_response("200 OK", text)
        return done
    if path == "/daemon":
        import threading
        try:
            threading.Thread(target=print, daemon=True).start()
        except RuntimeError as error:
            start_response("200 OK", text)
            return [str(error).encode()]
    start_response("404 Not Found", text)
    return [b"no such page"]
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevProcess]:
    root = tmp_path_factory.mktemp("shop")
    (root / "web" / "data").mkdir(parents=True)
    (root / "freehold.toml").write_text(
        '[project]\nname = "shop"\n[app.web]\nlanguage = "wsgi"\nsource = "web"\nroutes = ["/shop"]\ninstances = "reuse"\n'
    )
    (root / "web" / "app.py").write_text(APP)
    (root / "web" / "own_module.py").write_text("import decimal\nVALUE = decimal.Decimal(1)\n")
    (root / "web" / "data" / "words.txt").write_text("many words")
    with serving(root) as process:
        yield process


def environ(shop: DevProcess, path: str, headers: dict[str, str] | None = None) -> dict[str, object]:
    answer = shop.call(path, headers=headers)
    assert answer.status == 200, answer.text
    table: dict[str, object] = json.loads(answer.text)
    return table


def test_the_mount_point_and_the_path_are_kept_apart(shop: DevProcess) -> None:
    seen = environ(shop, "/shop/environ?a=1&b=%20")
    assert (seen["SCRIPT_NAME"], seen["PATH_INFO"], seen["QUERY_STRING"]) == ("/shop", "/environ", "a=1&b=%20")
    assert seen["SERVER_PROTOCOL"] == "HTTP/1.1"
    assert seen["wsgi"] == ["http", False, True]
    assert shop.call("/shop/caf%C3%A9").status == 404
    assert shop.call("/elsewhere").headers["content-type"] == "application/problem+json"


def test_request_headers_become_the_environ(shop: DevProcess) -> None:
    seen = environ(shop, "/shop/environ", {"X-One-Two": "3", "Content-Type": "text/x", "Host": "localhost:81"})
    assert (seen["HTTP_X_ONE_TWO"], seen["CONTENT_TYPE"]) == ("3", "text/x")
    assert (seen["HTTP_HOST"], seen["SERVER_NAME"], seen["SERVER_PORT"]) == ("localhost:81", "localhost", "81")
    assert "HTTP_CONTENT_TYPE" not in seen


def test_a_body_comes_back_as_it_was_sent(shop: DevProcess) -> None:
    body = bytes(range(256)) * 2_000
    assert shop.call("/shop/echo", "POST", body).body == body
    assert shop.call("/shop/lines", "POST", b"one\ntwo").body == b"ONE\nTWO"
    assert shop.call("/shop/echo", "POST", b"").body == b""


def test_a_body_nobody_reads_does_no_harm(shop: DevProcess) -> None:
    assert shop.call("/shop/ignore-body", "POST", b"x" * 300_000).text == "not read"
    assert shop.call("/shop/environ").status == 200


def test_pieces_are_sent_as_they_are_made(shop: DevProcess) -> None:
    host, _, port = shop.address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    connection.request("GET", "/shop/stream")
    response = connection.getresponse()
    assert response.read1() == b"piece 0\n"
    assert response.read() == b"piece 1\npiece 2\n"
    connection.close()


def test_write_and_returned_pieces_are_joined(shop: DevProcess) -> None:
    answer = shop.call("/shop/write")
    assert (answer.status, answer.text) == (201, "written and returned")


def test_head_has_headers_and_no_body(shop: DevProcess) -> None:
    answer = shop.call("/shop/write", "HEAD")
    assert (answer.status, answer.body) == (201, b"")


def test_repeated_headers_stay_apart(shop: DevProcess) -> None:
    host, _, port = shop.address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    connection.request("GET", "/shop/cookies")
    response = connection.getresponse()
    assert response.headers.get_all("set-cookie") == ["a=1", "b=2"]
    response.read()
    connection.close()


def test_an_exception_is_a_plain_500_and_its_traceback_is_in_the_log(shop: DevProcess) -> None:
    answer = shop.call("/shop/boom")
    assert (answer.status, answer.text) == (500, "Internal Server Error\n")
    entry = shop.log_with("RuntimeError: the secret is out")
    assert entry["stream"] == "guest"


def test_an_exception_in_the_middle_breaks_the_body_off(shop: DevProcess) -> None:
    with pytest.raises((http.client.IncompleteRead, http.client.HTTPException, ConnectionError)):
        shop.call("/shop/late-boom")
    assert shop.call("/shop/environ").status == 200


def test_headers_not_yet_sent_can_be_replaced(shop: DevProcess) -> None:
    answer = shop.call("/shop/exc-info")
    assert (answer.status, answer.text) == (503, "sorry")


def test_an_app_that_never_starts_its_response_is_a_500(shop: DevProcess) -> None:
    assert shop.call("/shop/silent").status == 500


def test_the_iterable_is_closed(shop: DevProcess) -> None:
    assert shop.call("/shop/closes").text == "body"
    assert shop.log_with("body was closed")["stream"] == "guest"


def test_the_apps_files_can_be_read_and_not_written(shop: DevProcess) -> None:
    assert shop.call("/shop/file").text == "many words['words.txt']"
    assert shop.call("/shop/write-file").text in {"PermissionError", "OSError"}


def test_modules_can_be_imported_late(shop: DevProcess) -> None:
    assert shop.call("/shop/late").text == "1.1"


def test_a_thread_does_its_work_in_place_and_a_daemon_is_refused(shop: DevProcess) -> None:
    assert shop.call("/shop/thread").text == "done"
    assert "daemon" in shop.call("/shop/daemon").text

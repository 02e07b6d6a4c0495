"""Runs `freehold dev --json` as a person would, as a process, and reads its events. Builds are cached in .cache/."""

from __future__ import annotations

import http.client
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
FREEHOLD = [sys.executable, "-c", "from cli.main import main; main()"]
ENVIRONMENT = {**os.environ, "XDG_CACHE_HOME": str(ROOT / ".cache" / "xdg"), "PYTHONPATH": str(ROOT)}
FIRST_BUILD_TIMEOUT_S = 280.0


def run_freehold(*arguments: str, folder: Path | None = None) -> tuple[int, dict[str, Any], str]:
    """Run one command with --json; return its exit code, its answer and what it said on standard error."""
    done = subprocess.run(
        [*FREEHOLD, *arguments, "--json"], env=ENVIRONMENT, cwd=folder, capture_output=True, text=True, check=False
    )
    return done.returncode, json.loads(done.stdout), done.stderr


class Answer:
    def __init__(self, response: http.client.HTTPResponse, body: bytes) -> None:
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self.body = body
        self.text = body.decode("utf-8", "replace")


class DevProcess:
    """One run. `events` are what it has said so far."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self.process = subprocess.Popen(
            [*FREEHOLD, "dev", "--json", "--port", "0", "--folder", str(folder), *flags],
            env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self.logs: list[dict[str, Any]] = []
        self.address = ""
        self._events: queue.Queue[dict[str, Any]] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                event = json.loads(line)
                event.setdefault("event", "error")  # the command's own last word, when it is stopped at its start
                if event["event"] == "log":
                    self.logs.append(event["log"])
                else:
                    self._events.put(event)
        self._events.put({"event": "ended"})

    def event(self, timeout_s: float = 30.0) -> dict[str, Any]:
        """Return the next event that is not a log line."""
        event = self._events.get(timeout=timeout_s)
        if event["event"] == "serving":
            self.address = event["address"]
        return event

    def call(
        self, path: str, method: str = "GET", body: Any = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        host, _, port = self.address.rpartition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=30)
        try:
            connection.request(method, path, body=body, headers=dict(headers or {}), encode_chunked=False)
            response = connection.getresponse()
            return Answer(response, response.read())
        finally:
            connection.close()

    def log_with(self, text: str, timeout_s: float = 10.0) -> dict[str, Any]:
        """Return the first log entry that contains `text`; log lines travel a moment after the answer."""
        limit_s = time.monotonic() + timeout_s
        while time.monotonic() < limit_s:
            for entry in list(self.logs):
                if text in json.dumps(entry):
                    return entry
            time.sleep(0.02)
        raise AssertionError(f"no log entry contains {text!r}")

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        code = self.process.wait(30)
        self._reader.join(10)
        return code


@contextmanager
def serving(folder: Path, *flags: str) -> Iterator[DevProcess]:
    """Serve a project until the block ends; fails if the first version cannot be served."""
    process = DevProcess(folder, *flags)
    try:
        first = process.event(FIRST_BUILD_TIMEOUT_S)
        assert first["event"] == "serving", first
        yield process
    finally:
        process.stop()

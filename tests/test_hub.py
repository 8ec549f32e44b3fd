"""Models of the hub, from a local server that speaks as the hub does."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "0" * 40
ASKS = """
import json, os, sys, urllib.request
from recbole_llm4sbr.base.errors import UserError
from recbole_llm4sbr.intent import pretrained
from recbole_llm4sbr.intent.backends import Request
from recbole_llm4sbr.intent.backends.transformers import TransformersBackend

for name in sys.argv[1:]:
    if name in ("made-private", "away"):
        urllib.request.urlopen(f"{os.environ['HF_ENDPOINT']}/{name}").read()
        pretrained._on_hub.cache_clear()  # as another process would have it
        continue
    try:
        answer = next(iter(TransformersBackend(name, 8, 2).generate([Request("", "red river 1", "")])))[1]
    except UserError as error:
        answer = f"error: {error}"
    print(json.dumps(answer))
"""


@pytest.fixture
def hub(tiny_llm):
    """Address of a server with one model, `team/tiny`, and one that asks for a login; and what it was asked."""
    asked, private = [], set()

    class Hub(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            asked.append(f"{self.command} {self.path}")
            name, _, file = (
                self.path.removeprefix("/api/models/").lstrip("/").replace(COMMIT, "main").partition("/resolve/main/")
            )
            path = Path(tiny_llm, file or "-")
            if name not in private and name == "team/tiny" and path.is_file():
                self.reply(200, path.read_bytes(), {"ETag": f'"{file}"', "X-Repo-Commit": COMMIT})
            elif self.path == "/api/models/team/tiny":
                self.reply(200, json.dumps({"id": "team/tiny", "sha": COMMIT, "siblings": []}).encode(), {})
            elif name not in private and name.startswith("team/tiny"):
                self.reply(404, b"", {"X-Error-Code": "EntryNotFound"})
            elif self.path == "/made-private":
                private.add("team/tiny")
                self.reply(200, b"", {})
            elif self.path == "/away":
                self.server.shutdown()
                self.server.socket.close()
                self.reply(200, b"", {})  # last: whoever has it asks a hub that is gone
            else:
                gated = name == "team/gated"
                self.reply(403 if gated else 404, b"", {"X-Error-Code": "GatedRepo" if gated else "RepoNotFound"})

        def reply(self, status, content, headers):
            self.send_response(status)
            for header, value in headers.items() | {("Content-Length", str(len(content)))}:
                self.send_header(header, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        do_HEAD = do_GET

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def test_a_model_of_the_hub_answers_as_its_folder_does_and_others_are_named(hub, tiny_llm, tmp_path):
    address, asked = hub
    env = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    env |= {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    names = ["team/tiny", tiny_llm, "team/nothing", "team/gated"]
    names += ["made-private", "team/tiny", "away", "team/tiny", "team/other"]
    done = subprocess.run([sys.executable, "-c", ASKS, *names], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    there, here, missing, gated, hidden, cached, lost = [json.loads(line) for line in done.stdout.splitlines()]
    assert there == here and not there.startswith("error")
    assert "no folder 'team/nothing' here, and no model of that name on the hub" in missing
    assert "'team/gated' asks for a login" in gated
    assert [line for line in asked if "nothing" in line] == ["HEAD /team/nothing/resolve/main/config.json"]
    assert hidden == there, "from the cache, the hub denying that there is such a model"
    assert cached == there, "from the cache, the hub being away"
    assert "no folder 'team/other' here, and the hub does not give a model of that name" in lost
    assert "Retrying" not in done.stderr

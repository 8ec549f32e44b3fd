"""`serve`: what it answers equals what the class returns, requests are bounded, and the page works in a real browser where there is one."""

import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import pytest

from recbole_llm4sbr import Recommender
from recbole_llm4sbr.base.settings import load_settings
from recbole_llm4sbr.cli.main import main
from recbole_llm4sbr.cli.serve import reached_as
from recbole_llm4sbr.intent.infer import infer
from recbole_llm4sbr.training.run import train

testclient = pytest.importorskip("fastapi.testclient")
server = pytest.importorskip("recbole_llm4sbr.recommend.server")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def checkpoints(given, made, tmp_path_factory):
    """A plain model and one with session text, of the small world."""
    folder = tmp_path_factory.mktemp("served")
    shutil.copytree(made, folder / "atomic")
    common = given | {"atomic_path": str(folder / "atomic"), "checkpoint_dir": str(folder), "intent_source": "session_text"}
    infer(load_settings(dataset="tiny", overrides=common))
    return [
        train(load_settings(dataset="tiny", overrides=common | {"llm4sbr": enhanced})).checkpoint for enhanced in (False, True)
    ]


@pytest.fixture(scope="module")
def models(checkpoints):
    return {"plain": Recommender.load(checkpoints[0]), "enhanced": Recommender.load(checkpoints[1])}


@pytest.fixture(scope="module")
def client(models):
    return testclient.TestClient(server.create_app(models, ["testserver"]), raise_server_exceptions=True)


def known(models):
    catalogue = models["plain"].catalogue
    return [token for token, clicked in zip(catalogue.tokens, catalogue.clicked) if clicked]


def test_answers_are_those_of_the_recommender(client, models):
    sessions = [known(models)[:3], known(models)[4:5]]
    for name, model in models.items():
        answer = client.post("/recommend", json={"sessions": sessions, "topn": 4, "model": name}).json()
        expected = model.recommend(sessions, topn=4)
        rows = [
            (str(place), each["rank"], each["item"], each["title"])
            for place, found in enumerate(answer["results"])
            for each in found["items"]
        ]
        assert rows == list(expected[["session", "rank", "item", "title"]].itertuples(index=False, name=None))
        assert [each["intents"] for each in answer["results"]] == (["-"] * 2 if name == "plain" else ["session_text"] * 2)
    near = answer["results"][0]["localized"]
    assert list(near) == ["long", "short"]
    assert near["long"][0]["similarity"] >= near["long"][-1]["similarity"] > 0
    assert client.get("/health").json()["models"] == ["plain", "enhanced"]
    assert client.get("/openapi.json").json()["paths"].keys() >= {"/recommend", "/health", "/items"}


def test_a_near_spelling_is_refused_with_a_suggestion(client, models):
    title = models["plain"].catalogue.titles[models["plain"].catalogue.number[known(models)[0]]]
    answer = client.post("/recommend", json={"sessions": [[known(models)[1], title[:-1]]]})
    assert answer.status_code == 422
    assert "neither an id nor a title" in answer.json()["detail"]
    assert "did you mean" in answer.json()["detail"]
    assert client.post("/recommend", json={"sessions": [[title.upper()]]}).status_code == 200


def test_a_whole_number_in_a_request_is_an_id_and_never_a_place(client):
    for wrong, said in ((1, "item '1' is neither an id nor a title"), (True, "valid"), (1.0, "valid"), (None, "valid")):
        answer = client.post("/recommend", json={"sessions": [[wrong]]})
        assert answer.status_code == 422
        assert said in str(answer.json()["detail"])


def test_items_are_found_by_what_is_typed(client, models):
    catalogue = models["plain"].catalogue
    token, title = catalogue.tokens[3], catalogue.titles[3]
    found = client.get("/items", params={"q": title[:-1]}).json()
    assert {"item": token, "title": title} in found
    assert client.get("/items", params={"q": token}).json()[0]["item"] == token
    assert client.get("/items", params={"q": "no such title at all"}).json() == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"sessions": []}, 422),
        ({"sessions": [[]]}, 422),
        ({"sessions": [["x" * 501]]}, 422),
        ({"sessions": [["i"] * 501]}, 422),
        ({"sessions": [["no such title"]]}, 422),
        ({"sessions": [["i1"]] * 65}, 422),
        ({"sessions": [["i1"]], "topn": 201}, 422),
        ({"sessions": [["i1"]], "intents": "magic"}, 422),
        ({"sessions": [["i1"]], "intents": "ask"}, 403),
        ({"sessions": [["i1"]], "model": "../saved/other.pth"}, 404),
        ({"sessions": [["i1" * 200] * 400] * 10}, 413),
        ({"sessions": [["i1"]], "top": 3}, 422),
        ("not json", 422),
        ('{"sessions": [["i1"]], "topn": NaN}', 422),
        ('{"sessions": [["\\ud800"]]}', 422),
        ('{"sessions": [["i1"]], "model": "\\ud800"}', 422),
        ('{"sessions": [["i1"]], "\\ud800": 1}', 422),
    ],
)
def test_requests_are_bounded_and_refused_with_a_reason(client, body, status):
    given = {"content": body} if isinstance(body, str) else {"json": body}
    response = client.post("/recommend", headers={"Content-Type": "application/json"}, **given)
    assert response.status_code == status
    assert response.json()["detail"]


@pytest.mark.parametrize(
    ("host", "asked", "status"),
    [
        ("::1", "[::1]:8000", 200),
        ("::1", "localhost:8000", 200),
        ("::1", "evil.example", 400),
        ("127.0.0.1", "127.0.0.1:8000", 200),
        ("127.0.0.1", "evil.example", 400),
        ("::", "evil.example", 200),  # open to the network, by any name
    ],
)
def test_a_service_is_reached_where_it_listens(models, host, asked, status):
    client = testclient.TestClient(server.create_app(models, reached_as(host)))
    assert client.get("/health", headers={"Host": asked}).status_code == status


def test_a_strange_host_is_refused_and_the_page_runs_no_foreign_code(client):
    assert client.get("/health", headers={"Host": "evil.example"}).status_code == 400
    page = client.get("/")
    assert "script-src 'self'" in page.headers["Content-Security-Policy"]
    assert not re.search(r"https?://|<script>|style=|\son\w+=", page.text)
    script = client.get("/page.js").text
    assert "innerHTML" not in script
    assert client.get("/../setup.cfg").status_code == 404


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "serve needs --checkpoint"),
        (["--checkpoint=gone.pth"], "there is no checkpoint 'gone.pth'"),
        (["--checkpoint=a.pth,b.pth", "--names=one"], "must be a name of its own for each of the 2 checkpoints"),
        (["--checkpoint=gone.pth", "--ensemble=true"], "--ensemble=true needs two checkpoints"),
        (["--checkpoint=a.pth", "--port=0"], "--port='0' must be a whole number of at least 1"),
    ],
)
def test_a_mistake_is_one_line(capsys, arguments, said):
    assert main(["serve", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_port_in_use_is_found_before_any_model_is_loaded(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--checkpoint=gone.pth", f"--port={port}"]) == 2
    assert f"cannot listen at 127.0.0.1:{port} (Address already in use)" in capsys.readouterr().err


@pytest.fixture(scope="module")
def address(checkpoints):
    """The command itself, in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "recbole_llm4sbr.cli",
        "serve",
        f"--checkpoint={','.join(checkpoints)}",
        "--names=plain,enhanced",
        "--ensemble=true",
    ]
    with subprocess.Popen([*command, f"--port={port}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        url = f"http://127.0.0.1:{port}/"
        for _ in range(900):
            try:
                urllib.request.urlopen(url + "health", timeout=1).read()
                break
            except OSError:
                assert process.poll() is None, process.stderr.read().decode()
                time.sleep(0.1)
        yield url
        process.kill()


def test_the_command_serves_each_model_and_all_together(address, models, checkpoints):
    assert json.loads(urllib.request.urlopen(address + "health", timeout=60).read())["models"] == [
        "plain", "enhanced", "ensemble of 2"]  # fmt: skip
    for name, expected in (("enhanced", models["enhanced"]), ("ensemble of 2", Recommender.load(checkpoints))):
        body = json.dumps({"sessions": [known(models)[:2]], "model": name, "topn": 3}).encode()
        request = urllib.request.Request(address + "recommend", body, {"Content-Type": "application/json"})
        found = json.loads(urllib.request.urlopen(request, timeout=60).read())["results"][0]["items"]
        rows = expected.recommend([known(models)[:2]], topn=3)
        assert [each["item"] for each in found] == rows["item"].tolist()
        assert [each["score"] for each in found] == pytest.approx(rows["score"].tolist(), abs=1e-5)


HOSTILE = "<img src=x onerror=alert(1)>\"'\t<script>alert(2)</script>" + "x" * 10_000


@pytest.fixture(scope="module")
def hostile_address(checkpoints):
    """The service in this process, with a title that would do harm if it were read as HTML."""
    uvicorn = pytest.importorskip("uvicorn")
    models = {"plain": Recommender.load(checkpoints[0]), "with session text": Recommender.load(checkpoints[1])}
    for model in models.values():
        titles = list(model.catalogue.titles)
        titles[next(number for number, clicked in enumerate(model.catalogue.clicked) if clicked)] = HOSTILE
        model.catalogue.__init__(model.catalogue.tokens, titles, model.catalogue.clicked)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = uvicorn.Server(uvicorn.Config(server.create_app(models), port=port, log_level="error"))
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}/"
    running.should_exit = True
    thread.join(5)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_a_person_types_titles_and_sees_recommendations(hostile_address, browser, models, tmp_path, width, scheme):
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    said = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("requestfailed", lambda request: said.append(request.url))
    page.on("dialog", lambda dialog: said.append(dialog.message) or dialog.dismiss())
    page.goto(hostile_address)
    for token in [known(models)[0], known(models)[1]]:
        page.fill("#title", token)
        page.wait_for_selector("#found li")
        page.keyboard.press("Enter")
    page.wait_for_selector("article:nth-of-type(2) ol li")
    page.wait_for_function("document.querySelectorAll('#session li').length === 2")
    cards = page.locator("article")
    assert cards.count() == 2
    assert cards.nth(0).locator("ol li").count() == 10
    assert cards.nth(1).locator("h3").all_inner_texts() == [
        "Intent, long view (session_text)",
        "Intent, short view (session_text)",
    ]
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.screenshot(path=str(tmp_path / f"{width}-{scheme}.png"), full_page=width == 1280)
    page.fill("#title", "nothing of this name")
    page.keyboard.press("Enter")
    page.wait_for_selector("#error:not([hidden])")
    page.click("#clear")
    page.wait_for_function("document.querySelectorAll('article').length === 0")
    assert said == []
    page.close()

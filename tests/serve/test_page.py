"""The inspection page in headless Chromium: the token, a picture dropped, two models side by side.

Needs Debian's chromium (`apt-get install chromium`) and the development dependencies.
"""

import shutil
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn

from assay.serve import page
from assay.serve.http import make_app
from assay.serve.limits import Limits
from assay.serve.tokens import Tokens

TOKEN = "a-long-secret"


def test_the_page_is_behind_the_token(ask):
    nobody = {"authorization": ""}
    reply = ask("GET", "/", headers=nobody)
    assert (reply.status_code, reply.headers["location"]) == (303, "/login")
    policy = ask("GET", "/login", headers=nobody).headers["content-security-policy"]
    assert "default-src 'self'" in policy
    for path in ("/page/inspect.js", "/page/sample/parts", "/page/uncertain"):
        assert ask("GET", path, headers=nobody).status_code == 401
    wrong = ask("POST", "/login", content="token=wrong", headers=nobody)
    assert (wrong.status_code, "set-cookie" in wrong.headers) == (401, False)
    right = ask("POST", "/login", content=f"token={TOKEN}", headers=nobody)
    assert (right.status_code, right.headers["location"]) == (303, "/")
    cookie = right.headers["set-cookie"]
    assert TOKEN not in cookie
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    entered = {"cookie": cookie.split(";")[0]} | nobody
    assert "Inspect a part" in ask("GET", "/", headers=entered).text
    assert ask("GET", "/v1/models", headers=entered).status_code == 200
    assert ask("GET", "/v1/models", headers={"cookie": "assay=0"} | nobody).status_code == 401
    assert ask("POST", "/login", content="a" * 5000, headers=nobody).status_code == 413
    for path in ("/page/..%2f..%2ferrors.py", "/page/login.html", "/page/sample/none"):
        reply = ask("GET", path)
        assert reply.status_code == 404
        assert reply.json()["request"] == reply.headers["x-request-id"]


def test_a_page_names_no_other_host():
    for path in page.PAGES.glob("*"):
        if path.name.split(".")[0] in ("inspect", "login"):
            assert "://" not in path.read_text()


def test_the_least_certain_are_shown_first_and_the_oldest_forgotten():
    requests = page.UncertainRequests()
    for i in range(page.NUM_RECENT + 5):
        requests.add("parts", {"label": "a", "probs": {"a": (i % 700) / 700, "b": 0.0}}, str(i))
    thumbs = [request["thumb"] for request in requests.rank()]
    assert thumbs == [str(5 + i) for i in range(page.NUM_KEPT)]


@pytest.fixture
def address(here) -> Iterator[str]:
    here.recent = page.UncertainRequests()
    for inspector in here.inspectors.values():
        inspector.keep = True
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    app = make_app(here, Limits(), Tokens(TOKEN))
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


@pytest.fixture
def browser() -> Iterator[object]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("chromium is not installed; apt-get install chromium")
    with api.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


def test_a_person_asks_the_page(browser, address, pictures, registry, tmp_path):
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    tab = context.new_page()
    faults, requested = [], []
    tab.on("pageerror", lambda error: faults.append(str(error)))
    tab.on("console", lambda line: faults.append(line.text) if line.type == "error" else None)
    tab.on("request", lambda request: requested.append(request.url))
    tab.goto(address)
    tab.get_by_label("Token of this server").fill(TOKEN)
    tab.keyboard.press("Enter")
    tab.get_by_role("heading", name="Inspect a part").wait_for()
    tab.get_by_label("Task").select_option("parts")
    tab.get_by_label("Answered by").select_option("both")
    tab.get_by_label("Images of one part").set_input_files([str(path) for path in pictures[:2]])
    for alias in ("champion", "challenger"):
        version = registry.holder("parts", alias).version
        heading = tab.get_by_role("heading", name=f"{alias} {version}")
        section = tab.locator("section.model", has=heading)
        section.get_by_text("Calibrated probabilities").wait_for()
        assert section.get_by_role("img", name="looked at 1 patch").count() == 2
        assert section.locator("tr").count() == 3
    assert "champion:" in tab.get_by_role("status").inner_text()
    tab.get_by_text("Model card").first.click()
    assert tab.get_by_text("0.900 [0.800, 0.950], n = 60").first.is_visible()
    assert tab.get_by_role("heading", name="Least certain of late").is_visible()
    tab.screenshot(path=str(tmp_path / "class.png"), full_page=True)
    # by keyboard alone: the next task, its sample
    tab.get_by_label("Task").focus()
    tab.keyboard.press("Home")
    assert tab.get_by_label("Answered by").input_value() == "champion"
    tab.get_by_role("button", name="Take the sample").focus()
    tab.keyboard.press("Enter")
    tab.get_by_role("img", name="Image 1: pore").wait_for()
    coloured = tab.evaluate(
        "() => { const c = document.querySelector('canvas'); const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; let n = 0; for (let i = 0; i < d.length; i += 4) n += d[i] > d[i + 2] + 60; return n / (c.width * c.height); }"
    )
    assert coloured > 0.1
    tab.screenshot(path=str(tmp_path / "mask.png"), full_page=True)
    assert faults == []
    assert all(url.startswith((address, "data:", "blob:")) for url in requested)
    context.close()

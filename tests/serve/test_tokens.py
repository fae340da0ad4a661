"""Tokens by name: who may do what, how often, and no longer than their line is in the file."""

import itertools
import os
from pathlib import Path

import pytest

from assay.errors import ServeError
from assay.serve import tokens
from assay.serve.config import ServeConfig
from assay.serve.http import make_app
from assay.serve.limits import Limits
from assay.serve.tokens import Rates, Tokens, open_tokens

FILE = """# who asks
line-7 ask first-secret
office look,ask second-secret

robot promote third-secret
"""


def bearer(secret: str) -> dict[bytes, str]:
    return {b"authorization": f"Bearer {secret}"}


def test_tokens_come_from_the_environment_or_a_file_of_its_owner(tmp_path, monkeypatch):
    monkeypatch.delenv("ASSAY_TOKEN", raising=False)
    path = tmp_path / "deep" / "token"
    config = ServeConfig(token_file=path)
    with pytest.raises(ServeError, match="no token"):
        open_tokens(config)
    (written,) = open_tokens(config, create=True).present()
    (again,) = open_tokens(config).present()
    assert written.secret == again.secret == path.read_text()
    assert len(written.secret) == 64
    assert path.stat().st_mode & 0o777 == 0o600
    monkeypatch.setenv("ASSAY_TOKEN", "other")
    assert open_tokens(config).find(bearer("other"))
    assert not open_tokens(config).find(bearer(written.secret))
    monkeypatch.delenv("ASSAY_TOKEN")
    path.chmod(0o644)
    with pytest.raises(ServeError, match="chmod 600"):
        open_tokens(config)
    path.chmod(0o600)
    for blank in ("\n", "", "  \n", "# none"):
        path.write_text(blank)
        with pytest.raises(ServeError, match="empty"):
            open_tokens(config)
        monkeypatch.setenv("ASSAY_TOKEN", blank)
        with pytest.raises(ServeError, match="ASSAY_TOKEN is empty"):
            open_tokens(config)
        monkeypatch.delenv("ASSAY_TOKEN")
    for odd in ("two words", " before", "t\u00e4", "a\tb", "a b c d", "a ask t\u00e4"):
        path.write_text(odd + "\n")
        with pytest.raises(ServeError, match="one word"):
            open_tokens(config)
    for odd in ("a ask secret\nb promote secret", "secret\nsecret"):
        path.write_text(odd)
        with pytest.raises(ServeError, match="in line 2 the token of") as refused:
            open_tokens(config)
        assert "secret" not in str(refused.value)
    for odd in ("ask", "look,ask", "line-7 ask promote"):
        path.write_text(odd + "\n")
        with pytest.raises(ServeError, match="scopes in the place of a token in line 1"):
            open_tokens(config)
    for odd in ("a all b", "a ask, b", "a ask b\na look c"):
        path.write_text(odd + "\n")
        with pytest.raises(ServeError, match=r"scopes are|again"):
            open_tokens(config)
    assert open_tokens(ServeConfig(open=True, token_file=Path("/none"))) is None


def test_a_token_file_that_is_there_and_cannot_be_read_is_told_from_none(tmp_path, monkeypatch):
    monkeypatch.delenv("ASSAY_TOKEN", raising=False)
    pipe, folder, latin = (tmp_path / name for name in ("pipe", "folder", "latin"))
    os.mkfifo(pipe)
    folder.mkdir()
    latin.write_bytes("schlüssel".encode("latin-1"))
    reasons = {pipe: "a pipe, a socket", folder: "Is a directory", latin: "codec can't decode"}
    for path, reason in reasons.items():
        with pytest.raises(ServeError, match=f"token file {path} cannot be read .*{reason}"):
            open_tokens(ServeConfig(token_file=path))
    with pytest.raises(ServeError, match="There is no token in ASSAY_TOKEN nor in"):
        open_tokens(ServeConfig(token_file=tmp_path / "none"))


def test_a_token_is_found_by_header_or_cookie_and_by_nothing_else():
    opened = Tokens(FILE)
    for token, other in itertools.permutations(opened.present(), 2):
        assert opened.find(bearer(token.secret)) == token
        assert opened.find({b"cookie": f"a=b; assay={token.cookie}"}) == token
        assert token.cookie != other.cookie
        assert token.secret not in repr(token) + token.cookie
        for headers in (
            {b"authorization": token.secret},
            {b"authorization": f"Basic {token.secret}"},
            bearer(token.cookie),
            bearer(token.name),
            {b"cookie": f"assay={token.secret}"},
            {b"cookie": f"other={token.cookie}"},
            {},
        ):
            assert opened.find(headers) is None


def test_a_line_that_is_taken_away_lets_nobody_in_any_more(tmp_path, caplog):
    path = tmp_path / "tokens"
    path.touch(0o600)
    path.write_text(FILE)
    opened = Tokens(FILE, path)
    assert opened.find(bearer("first-secret"))
    path.write_text(FILE.replace("line-7 ask first-secret\n", "line-8 ask fourth-secret\n"))
    assert not opened.find(bearer("first-secret"))
    assert opened.find(bearer("fourth-secret")).name == "line-8"
    for spoil in (lambda: path.chmod(0o644), path.unlink):
        spoil()
        assert not opened.find(bearer("fourth-secret"))
    assert len([line for line in caplog.messages if "nobody is let in" in line]) == 2


def test_each_scope_opens_its_own_paths(ask, pictures):
    image = pictures[0].read_bytes()
    asked = {"ask": ("POST", "/v1/parts"), "look": ("GET", "/v1/models")}
    asked["promote"] = "POST", "/v1/models/parts?version=none"
    for token in Tokens(FILE).present():
        for scope, (method, path) in asked.items():
            headers = {"authorization": f"Bearer {token.secret}"}
            reply = ask(method, path, tokens=FILE, content=image, headers=headers)
            allowed = 409 if scope == "promote" else 200
            assert reply.status_code == (allowed if scope in token.scopes else 403), reply.text
            if reply.status_code == 403:
                assert scope in reply.json()["error"]
                assert reply.json()["request"] == reply.headers["x-request-id"]
    for secret, status in (("first-secret", 401), ("second-secret", 303)):
        entered = ask("POST", "/login", tokens=FILE, content=f"token={secret}")
        assert entered.status_code == status


def test_a_token_that_asks_too_often_waits_and_no_other_does(monkeypatch):
    now = 100.0
    monkeypatch.setattr(tokens.time, "monotonic", lambda: now)
    rates = Rates(4.0)
    assert [rates.take("a") for _ in range(6)] == [True] * 4 + [False] * 2
    assert rates.take("b")
    now += 0.5
    assert [rates.take("a") for _ in range(3)] == [True, True, False]
    now += 1000.0  # no more than a second is saved up
    assert sum(rates.take("a") for _ in range(10)) == 4
    assert all(Rates(0.0).take("a") for _ in range(100))
    slow = Rates(0.1)
    assert [slow.take("a"), slow.take("a")] == [True, False]
    now += 10.0
    assert slow.take("a")


def test_too_often_is_said_and_costs_no_other_path(here, ask, pictures):
    app = make_app(here, Limits(rate=1.0), Tokens(FILE))
    content = pictures[0].read_bytes()
    headers = {"authorization": "Bearer second-secret"}
    replies = [ask("POST", "/v1/parts", app=app, content=content, headers=headers) for _ in "ab"]
    assert [reply.status_code for reply in replies] == [200, 429]
    assert "more than 1 times a second" in replies[1].json()["error"]
    assert replies[1].headers["retry-after"] == "1"
    assert ask("GET", "/v1/models", app=app, headers=headers).status_code == 200

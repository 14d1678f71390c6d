"""The guard of the root conftest: it is on, and it bites."""

import os
import socket
import urllib.request

import pytest


def test_model_hubs_are_switched_off_for_every_test():
    assert os.environ["HF_HUB_OFFLINE"] == os.environ["TRANSFORMERS_OFFLINE"] == "1"


def test_a_unit_test_cannot_open_a_connection():
    with socket.socket() as connection, pytest.raises(AssertionError, match="unit tests use no network"):
        connection.connect(("192.0.2.1", 9))


def test_the_guard_lets_this_machine_through():
    with socket.socket() as server, socket.socket() as client:
        server.bind(("127.0.0.1", 0))
        server.listen()
        client.connect(server.getsockname())


def test_the_hub_client_knows_that_it_is_offline():
    from huggingface_hub import constants

    assert constants.HF_HUB_OFFLINE


def test_urllib_is_caught_too(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(AssertionError, match="unit tests use no network"):
        urllib.request.urlopen("http://192.0.2.1/", timeout=1)

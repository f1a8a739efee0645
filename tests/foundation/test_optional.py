"""Libraries that others use where they are installed can be kept out of a process while those are imported."""

from __future__ import annotations

import importlib
import os
import ssl
import sys

import pytest

from swarmtask.optional import trusting_nobody, without

UNUSED = "this"
"""A module of the standard library that nothing here imports, and that says something when it is."""


def test_a_library_is_missing_only_meanwhile(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, UNUSED, raising=False)
    with without(UNUSED), pytest.raises(ImportError):
        importlib.import_module(UNUSED)
    assert UNUSED not in sys.modules
    importlib.import_module(UNUSED)
    assert "Zen of Python" in capsys.readouterr().out


def test_what_is_loaded_already_stays() -> None:
    with without("sys", "json"):
        assert importlib.import_module("sys") is sys
    assert sys.modules["sys"] is sys


def test_it_ends_with_an_error_too() -> None:
    with pytest.raises(ZeroDivisionError), without("no_such_library_here"):
        raise ZeroDivisionError
    assert "no_such_library_here" not in sys.modules


def test_contexts_made_meanwhile_trust_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/as/it/was")
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    with trusting_nobody():
        context = ssl.create_default_context()
    assert context.cert_store_stats()["x509"] == 0
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert os.environ["SSL_CERT_FILE"] == "/as/it/was"
    assert "SSL_CERT_DIR" not in os.environ

"""Settings: file, then environment, then what the program was told, each overriding the one before."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from swarmtask.errors import ConfigurationError
from swarmtask.settings import ApiServerSettings, Settings, load_settings


@pytest.fixture(autouse=True)
def _no_settings_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("SWARMTASK_"):
            monkeypatch.delenv(name)


def test_each_layer_overrides_the_one_below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "settings.yaml"
    config.write_text("data_dir: /from/file\nlog_level: debug\noperator: {submit_wave: 7, poll_interval_s: 3}\n")
    settings = load_settings(config)
    assert (str(settings.data_dir), settings.log_level, settings.operator.submit_wave) == ("/from/file", "debug", 7)
    monkeypatch.setenv("SWARMTASK_DATA_DIR", "/from/environment")
    monkeypatch.setenv("SWARMTASK_OPERATOR__SUBMIT_WAVE", "9")
    settings = load_settings(config)
    assert (str(settings.data_dir), settings.log_level, settings.operator.submit_wave) == ("/from/environment", "debug", 9)
    assert settings.operator.poll_interval_s == 3  # a group is merged, not replaced
    settings = load_settings(config, data_dir=Path("/from/option"), log_level=None)
    assert (str(settings.data_dir), settings.log_level) == ("/from/option", "debug")


def test_the_environment_is_read_as_documented(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("swarmtask_swarm__capability_add", '["NET_ADMIN"]')
    monkeypatch.setenv("SWARMTASK_OPERATOR", '{"submit_wave": 5}')
    monkeypatch.setenv("SWARMTASK_OPERATOR__POLL_INTERVAL_S", "2")
    monkeypatch.setenv("SWARMTASK_LOG_LEVEL", "")  # empty: not set
    monkeypatch.setenv("SWARMTASK_UNKNOWN", "whatever")
    settings = load_settings()
    assert settings.swarm.capability_add == ["NET_ADMIN"]
    assert (settings.operator.submit_wave, settings.operator.poll_interval_s, settings.log_level) == (5, 2, "info")
    assert "host" not in settings.apiserver.model_fields_set


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("SWARMTASK_SWARM__CAPABILITY_ADD", "NET_ADMIN", "an environment variable is wrong"),
        ("SWARMTASK_OPERATOR", "nonsense", "an environment variable is wrong"),
        ("SWARMTASK_OPERATOR__SUBMIT_WAFE", "1", "operator.submit_wafe"),
        ("SWARMTASK_OPERATOR__SUBMIT_WAVE", "many", "operator.submit_wave"),
    ],
)
def test_a_wrong_variable_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=words):
        load_settings()


def test_what_is_given_in_code_is_never_overridden_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWARMTASK_DATA_DIR", "/from/environment")
    monkeypatch.setenv("SWARMTASK_APISERVER__PORT", "99")
    settings = Settings(data_dir=Path("/private"), apiserver=ApiServerSettings(port=0))
    assert (str(settings.data_dir), settings.apiserver.port) == ("/private", 0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nonsense: 1", "unknown settings"),
        ("operator: {submit_wave: 0}", "operator.submit_wave"),
        ("operator: {submit_wafe: 1}", "operator.submit_wafe"),
        ("[1]", "must hold a mapping"),
        ("a: [", "cannot read"),
    ],
)
def test_a_wrong_file_is_refused_and_the_setting_named(tmp_path: Path, text: str, words: str) -> None:
    config = tmp_path / "settings.yaml"
    config.write_text(text)
    with pytest.raises(ConfigurationError, match=words):
        load_settings(config)


def test_a_missing_file_and_a_wrong_option_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot read"):
        load_settings(tmp_path / "missing.yaml")
    with pytest.raises(ConfigurationError, match="log_level"):
        load_settings(log_level="loud")

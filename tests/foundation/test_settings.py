from __future__ import annotations

from pathlib import Path

import pytest

from swarmtask.errors import ConfigurationError
from swarmtask.settings import load_settings


@pytest.fixture(autouse=True)
def _no_settings_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("SWARMTASK_"):
            monkeypatch.delenv(name)


def test_the_order_is_file_then_environment_then_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "settings.yaml"
    config.write_text("operator: {submit_wave: 3, wave_gap_s: 1}\nlog_level: debug\n")
    assert load_settings(config).operator.submit_wave == 3
    monkeypatch.setenv("SWARMTASK_OPERATOR__SUBMIT_WAVE", "7")
    monkeypatch.setenv("SWARMTASK_LOG_LEVEL", "warning")
    settings = load_settings(config, log_level="error", data_dir=None)
    assert (settings.operator.submit_wave, settings.operator.wave_gap_s, settings.log_level) == (7, 1.0, "error")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("operator: {submit_wave: 0}", "operator.submit_wave"),
        ("operator: {submit_waves: 1}", "operator.submit_waves"),
        ("operators: {}", "operators"),
        ("- a list", "must hold a mapping"),
        ("a: [", "cannot read"),
        ("log_level: loud", "log_level"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, text: str, said: str) -> None:
    config = tmp_path / "settings.yaml"
    config.write_text(text)
    with pytest.raises(ConfigurationError, match=said):
        load_settings(config)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no-such"):
        load_settings(tmp_path / "no-such.yaml")

from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from libs.common.settings import DEFAULT_SECRET, CommonSettings
from services.auth.settings import AuthSettings


def settings(**values: Any) -> CommonSettings:
    return CommonSettings(_env_file=None, **values)


@pytest.mark.parametrize("secret", [DEFAULT_SECRET, "", "short", "x" * 23])
def test_a_default_or_short_secret_stops_the_start_outside_embedded_mode(secret: str) -> None:
    with pytest.raises(ValidationError, match="TELAR_SERVICE_SECRET"):
        settings(service_secret=SecretStr(secret))


def test_embedded_mode_makes_its_own_secrets_and_production_brings_them() -> None:
    assert settings(embedded=True).embedded
    assert settings(service_secret=SecretStr("x" * 24)).service_secret.get_secret_value() == "x" * 24


def test_lists_are_written_as_people_write_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TELAR_OUTBOUND_ALLOW_NETWORKS", "10.0.0.0/8, 192.0.2.0/24 2001:db8::/32")
    networks = settings(embedded=True).outbound_allow_networks
    assert networks == tuple(map(ip_network, ("10.0.0.0/8", "192.0.2.0/24", "2001:db8::/32")))


def test_a_network_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TELAR_OUTBOUND_ALLOW_NETWORKS", "everything")
    with pytest.raises(ValidationError):
        settings(embedded=True)


def test_secrets_do_not_show_when_settings_are_printed() -> None:
    secret = "a-secret-nobody-should-ever-read"
    assert secret not in repr(settings(service_secret=SecretStr(secret)))


def test_a_secret_may_be_a_file_of_its_setting_s_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "telar_service_secret").write_text("a-secret-of-a-file-in-a-folder\n")
    (tmp_path / "somebody_elses").write_text("not ours")
    monkeypatch.setenv("TELAR_SECRETS_DIR", str(tmp_path))
    assert settings().service_secret.get_secret_value() == "a-secret-of-a-file-in-a-folder"
    monkeypatch.setenv("TELAR_SERVICE_SECRET", "a-secret-of-the-environment")
    assert settings().service_secret.get_secret_value() == "a-secret-of-the-environment"


def test_a_service_s_own_secrets_may_be_files_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "telar_auth_database_url").write_text("postgresql://telar_auth:hidden@db/telar_auth")
    (tmp_path / "telar_admin_password").write_text("correct horse battery")
    monkeypatch.setenv("TELAR_SECRETS_DIR", str(tmp_path))
    auth = AuthSettings(common=settings(embedded=True))
    assert auth.database_url.startswith("postgresql://telar_auth:hidden@")
    assert auth.admin_password is not None
    assert auth.admin_password.get_secret_value() == "correct horse battery"

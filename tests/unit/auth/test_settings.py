import pytest
from pydantic import ValidationError

from libs.common.settings import CommonSettings
from services.auth.domain import Quota
from services.auth.settings import AuthSettings


def read() -> AuthSettings:
    return AuthSettings(common=CommonSettings(embedded=True))


def test_limits_that_an_operator_does_not_name_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = read()
    monkeypatch.setenv("TELAR_AUTH_CLIENT_QUOTA", '{"vms": 3}')
    monkeypatch.setenv("TELAR_AUTH_ADMIN_QUOTA", '{"image_bytes": 5}')
    chosen = read()
    assert Quota.model_validate(chosen.client_quota).model_dump() == {**usual.client_quota, "vms": 3}
    assert Quota.model_validate(chosen.admin_quota).model_dump() == {**usual.admin_quota, "image_bytes": 5}


@pytest.mark.parametrize("given", ['{"vm": 3}', '{"vms": -2}'])
def test_limits_that_are_none_stop_the_start(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("TELAR_AUTH_CLIENT_QUOTA", given)
    with pytest.raises(ValidationError, match="must be limits of at least -1 for some of vms, cores"):
        read()

import json
import re
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from dotenv import dotenv_values
from pydantic import AliasChoices, TypeAdapter

from gateway.settings import GatewaySettings
from libs.common.settings import CommonSettings
from services.auth.settings import AuthSettings
from services.containers.settings import ContainersSettings
from services.fetcher.settings import FetcherSettings
from services.images.settings import ImagesSettings
from services.vms.settings import VmsSettings

ROOT = Path(__file__).resolve().parents[3]
SETTINGS = (
    CommonSettings,
    GatewaySettings,
    AuthSettings,
    ImagesSettings,
    VmsSettings,
    ContainersSettings,
    FetcherSettings,
)
LOCAL = re.compile(r"local:|127\.0\.0\.1")
TELARS_OWN = ("TELAR_LAB_TIME_SCALE", "TELAR_SECRETS_DIR")


def listed() -> dict[str, str]:
    """What the file says once the # is taken from every line that is a setting."""
    text = re.sub(r"(?m)^# (?=[A-Z][A-Z0-9_]*=)", "", (ROOT / ".env.example").read_text())
    return {name: value or "" for name, value in dotenv_values(stream=StringIO(text)).items()}


def known() -> dict[str, Any]:
    """Each setting's field, by the name of its variable."""
    fields = {}
    for settings in SETTINGS:
        for name, field in settings.model_fields.items():
            alias = field.validation_alias
            prefixed = f"{settings.model_config.get('env_prefix', '')}{name}".upper()
            fields[str(alias.choices[0] if isinstance(alias, AliasChoices) else alias or prefixed)] = field
    return fields


def compose_variables() -> str:
    files = ("docker-compose.yml", "deploy/swarm/stack.yml", "deploy/airgap/compose.yml")
    return "".join((ROOT / file).read_text() for file in files)


def test_every_line_names_a_setting_that_there_is() -> None:
    own, compose = known().keys() | set(TELARS_OWN), compose_variables()
    unknown = [name for name in listed() if name not in own and f"${{{name}:" not in compose]
    assert unknown == ["COMPOSE_FILE", "COMPOSE_PROFILES"]


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, value in listed().items() if name in known()])
def test_a_line_is_good_when_its_hash_is_taken_away_and_says_the_default(name: str, value: str) -> None:
    field = known()[name]
    adapter = TypeAdapter[Any](field.rebuild_annotation())
    default = field.get_default(call_default_factory=True)
    is_json = value.startswith(("{", "["))
    read = adapter.validate_python(json.loads(value) if is_json else value)
    assert value
    if (
        default
        and value != "…"
        and not is_json
        and not LOCAL.search(str(default))
        and not name.endswith(("_NETWORKS", "_DIR"))
    ):
        assert read == default


@pytest.mark.parametrize("name", [name for name in listed() if name.endswith(("_REPLICAS", "_PORT", "_IMAGE"))])
def test_what_compose_reads_is_listed_with_its_default(name: str) -> None:
    assert f"${{{name}:-{listed()[name]}}}" in (ROOT / "docker-compose.yml").read_text()


def test_no_default_is_listed_as_if_it_were_set() -> None:
    assert not [line for line in (ROOT / ".env.example").read_text().splitlines() if line and line[0] != "#"]


def test_every_service_in_containers_is_given_the_file_of_settings() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    for name in ("gateway", "auth", "images", "vms", "containers", "fetcher", "migrate", "dev"):
        assert services[name]["env_file"] == [{"path": ".env", "required": False}], name
        assert services[name]["environment"]["TELAR_DATA_DIR"] == "/var/lib/telar", name

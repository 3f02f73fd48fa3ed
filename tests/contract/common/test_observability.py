"""Dashboards and alert rules ask for what the processes show, and for nothing else."""

import json
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from pydantic import SecretStr

from cli.services import SERVICES
from gateway.main import create_app as create_gateway
from gateway.settings import GatewaySettings
from libs.common.bus import LocalBus
from libs.common.settings import CommonSettings
from services.vms.adapters import exporter

FOLDER = Path(__file__).parents[3] / "deploy" / "observability"
PROMETHEUS_OWN = {"up"}
_NAME = re.compile(r"\b(?:telar|pve|up)(?:_[a-z0-9_]+)?\b(?=[\[{ )/]|$)")
_STRINGS = re.compile(r'"[^"]*"')
_LABEL_LISTS = re.compile(r"\b(?:by|on|without|ignoring) ?\([^)]*\)")


def queries() -> Iterator[tuple[str, str]]:
    """Every expression of a dashboard or a rule, and where it stands."""
    for file in sorted((FOLDER / "grafana" / "dashboards").glob("*.json")):
        for panel in json.loads(file.read_text())["panels"]:
            for target in panel["targets"]:
                yield f"{file.stem}: {panel['title']}", target["expr"]
    for group in yaml.safe_load((FOLDER / "rules.yml").read_text())["groups"]:
        for rule in group["rules"]:
            yield f"rules: {rule['alert']}", rule["expr"]


def names_in(expression: str) -> set[str]:
    return set(_NAME.findall(_LABEL_LISTS.sub("", _STRINGS.sub('""', expression))))


@pytest.fixture(scope="module")
async def shown(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names of all series that the six processes show."""
    folder = tmp_path_factory.mktemp("data")
    common = CommonSettings(_env_file=None, embedded=True, data_dir=folder, service_secret=SecretStr("x" * 32))
    apps: list[Any] = [create_gateway(GatewaySettings(_env_file=None, common=common), bus=LocalBus())]
    apps += [entry.create_app(entry.settings(_env_file=None, common=common), bus=LocalBus()) for entry in SERVICES]
    names: set[str] = set(exporter._FIGURES)
    for app in apps:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as http:
            page = (await http.get("/metrics")).raise_for_status().text
        for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", page, re.MULTILINE):
            names |= {name} if kind != "histogram" else {f"{name}_{part}" for part in ("bucket", "sum", "count")}
    return names


@pytest.mark.parametrize(("place", "expression"), list(queries()), ids=lambda value: value[:60])
def test_a_query_names_series_that_exist(shown: set[str], place: str, expression: str) -> None:
    names = names_in(expression)
    assert names, f"{place} names no series"
    assert names <= shown | PROMETHEUS_OWN, f"{place}: {names - shown - PROMETHEUS_OWN}"


def test_every_rule_says_what_to_do() -> None:
    groups = yaml.safe_load((FOLDER / "rules.yml").read_text())["groups"]
    rules = list(chain.from_iterable(group["rules"] for group in groups))
    for rule in rules:
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["description"]
        assert rule["labels"]["severity"] in ("warning", "critical")
    asked = " ".join(rule["expr"] for rule in rules)
    wanted = ("outbox_lag", "dead_letters_kept", "queue_consumers", "operations_overdue", "disk_free", "5..")
    assert [one for one in wanted if one not in asked] == []


def test_what_is_served_by_dashboards_has_a_place_of_its_own() -> None:
    boards = [json.loads(file.read_text()) for file in (FOLDER / "grafana" / "dashboards").glob("*.json")]
    assert len({board["uid"] for board in boards}) == len(boards) > 0
    for board in boards:
        places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]]
        assert len(set(places)) == len(places)

"""`telar secrets`: the files of secrets that a deployment in containers is given, each made once."""

import json
import secrets
from pathlib import Path

LAB_TOKEN_ID = "telar@pve!telar"  # noqa: S105 - a name
_CLUSTERS = "telar_vms_clusters"
_NO_CLUSTERS = "[]"
_SQL_SERVICES = ("auth", "images", "vms", "containers")


def write(folder: Path, *, lab: bool) -> list[str]:
    """Make what is missing in the folder, and leave what is there; gives the names of the files that were made.

    The lab is also named in a file of clusters that names none.

    The folder is for its owner alone. Its files are readable, because containers read them as users of their own.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = []
    for name, value in _values(folder, lab=lab).items():
        path = folder / name
        if path.exists() and not (lab and name == _CLUSTERS and path.read_text().strip() == _NO_CLUSTERS):
            continue
        partial = path.with_suffix(".new")
        partial.write_text(value + "\n")
        partial.chmod(0o644)  # whatever the umask
        partial.replace(path)
        made.append(name)
    return made


def _values(folder: Path, *, lab: bool) -> dict[str, str]:
    """Every file's content; two that hold the same password agree, also if one of them is there already."""
    rabbitmq, mongo, token = _new(), _kept(folder / "mongodb_password"), _kept(folder / "telar_pvesim_token_secret")
    conf, url = folder / "rabbitmq.conf", folder / "telar_bus_url"
    if conf.exists() != url.exists():
        raise FileExistsError(f"{conf} and {url} belong together: remove the one that is there, or bring the other")
    values = {
        "postgres_password": _new(),
        "mongodb_password": mongo,
        "rabbitmq.conf": f"default_user = telar\ndefault_pass = {rabbitmq}",
        "telar_bus_url": f"amqp://telar:{rabbitmq}@rabbitmq:5672/",
        "telar_service_secret": _new(),
        "telar_admin_password": _new(),
        "telar_fetcher_mongo_uri": f"mongodb://telar:{mongo}@mongodb:27017/?authSource=admin",
        "telar_pvesim_token_secret": token,
        _CLUSTERS: json.dumps([_lab(token)]) if lab else _NO_CLUSTERS,
    }
    for service in _SQL_SERVICES:
        name = f"telar_{service}"
        values[f"{name}_database_url"] = f"postgresql://{name}:{_new()}@postgres:5432/{name}"
    return values


def _lab(token: str) -> dict[str, str]:
    return {
        "name": "lab",
        "url": "https://pvesim:8006",
        "token_id": LAB_TOKEN_ID,
        "token_secret": token,
        "ca": "/lab/pvesim/pve-ssl.pem",
    }


def _new() -> str:
    return secrets.token_urlsafe(32)


def _kept(path: Path) -> str:
    return path.read_text().strip() if path.exists() else _new()

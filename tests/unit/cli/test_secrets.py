import json
import os
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from cli.secrets import write


def read(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_what_belongs_together_agrees_and_nothing_else_does(tmp_path: Path) -> None:
    write(tmp_path / "secrets", lab=True)
    found = read(tmp_path / "secrets")
    assert f"default_pass = {urlsplit(found['telar_bus_url']).password}" in found["rabbitmq.conf"]
    assert urlsplit(found["telar_fetcher_mongo_uri"]).password == found["mongodb_password"].strip()
    (lab,) = json.loads(found["telar_vms_clusters"])
    assert lab["token_secret"] == found["telar_pvesim_token_secret"].strip()
    urls = [urlsplit(text) for name, text in found.items() if name.endswith("_database_url")]
    assert {url.username for url in urls} == {"telar_auth", "telar_images", "telar_vms", "telar_containers"}
    assert len({url.password for url in urls}) == len(urls)
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700


def test_a_second_call_changes_nothing_and_a_lost_file_is_made_anew(tmp_path: Path) -> None:
    assert len(write(tmp_path, lab=False)) == 13
    before = read(tmp_path)
    assert json.loads(before["telar_vms_clusters"]) == []
    assert write(tmp_path, lab=False) == []
    (tmp_path / "telar_fetcher_mongo_uri").unlink()
    assert write(tmp_path, lab=False) == ["telar_fetcher_mongo_uri"]
    assert read(tmp_path) == before


def test_the_lab_is_added_to_no_clusters_and_takes_nobody_s_place(tmp_path: Path) -> None:
    write(tmp_path, lab=False)
    clusters = tmp_path / "telar_vms_clusters"
    assert write(tmp_path, lab=True) == [clusters.name]
    (lab,) = json.loads(clusters.read_text())
    assert lab["token_secret"] == (tmp_path / "telar_pvesim_token_secret").read_text().strip()
    clusters.write_text('[{"name": "mine"}]')
    assert write(tmp_path, lab=True) == []


def test_containers_can_read_the_files_whatever_the_operator_s_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        write(tmp_path / "secrets", lab=False)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "secrets").iterdir()} == {0o644}
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700


def test_half_of_the_broker_s_secrets_is_refused_with_what_to_do(tmp_path: Path) -> None:
    write(tmp_path, lab=False)
    (tmp_path / "rabbitmq.conf").unlink()
    with pytest.raises(FileExistsError, match="belong together"):
        write(tmp_path, lab=False)
    assert not (tmp_path / "rabbitmq.conf").exists()

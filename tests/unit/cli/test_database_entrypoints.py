import os
import subprocess
from pathlib import Path

import pytest

AIRGAP = Path(__file__).resolve().parents[3] / "deploy" / "airgap"


@pytest.mark.parametrize("name", ["postgres", "mariadb"])
def test_a_folder_that_holds_something_else_or_is_damaged_is_left_as_it_is(name: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "base").mkdir(parents=True)
    (data / "base" / "kept").write_text("precious")
    (data / "PG_VERSION").touch()
    script = tmp_path / "entrypoint.sh"
    script.write_text((AIRGAP / name / "entrypoint.sh").read_text().replace("data=/var/lib/mysql", f"data={data}"))
    done = subprocess.run(
        ["/bin/bash", script], env={**os.environ, "PGDATA": str(data)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"{data} is not empty" in done.stderr
    assert (data / "base" / "kept").read_text() == "precious"

"""deploy/backup.sh and deploy/roll.sh with a `docker` of the test's own: its containers and volumes are in a folder."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"
DOCKER = f"""#!{sys.executable}
import os, subprocess, sys
from pathlib import Path

home = Path(os.environ["FAKE_DOCKER"])
words = sys.argv[1:]
(home / "calls").open("a").write(" ".join(words) + "\\n")
containers = home / "containers"


def end(code):
    sys.exit(code)


if words[0] == "logs":
    print("why it does not start")
elif words[0] in ("rm", "stop"):
    gone = [word for word in words[1:] if word != "--force"]
    if words[0] == "rm":
        kept = [line for line in containers.read_text().split() if line not in gone]
        containers.write_text("".join(line + "\\n" for line in kept))
elif words[1] == "ps":
    print(containers.read_text(), end="")
elif words[1] == "up":
    if "--scale" in words:
        containers.write_text("old1\\nold2\\nnew1\\nnew2\\n")
    end(int((home / "up_code").read_text()) if (home / "up_code").exists() else 0)
elif words[1] == "exec":
    print(0 if "psql" in words else "a dump")
elif words[1] == "run":
    at = words.index("--entrypoint")
    program, service, arguments = words[at + 1], words[at + 2], words[at + 3:]
    folder = str(home / "volumes" / service)
    if program == "printenv":
        end(1) if (home / "no_containers").exists() else print("/var/lib/telar")
    elif program == "telar":
        end(1) if (home / "full_store").exists() and "load" in arguments else print("documents")
    else:
        end(subprocess.run([program, *(word.replace("/var/lib/telar", folder) for word in arguments)]).returncode)
"""


class Fake:
    """The folder of the docker that the scripts call."""

    def __init__(self, home: Path) -> None:
        self.home = home
        for name in ("gateway", "images", "fetcher", "containers"):
            (home / "volumes" / name).mkdir(parents=True)
            (home / "volumes" / name / "kept").write_text(name)
        (home / "bin").mkdir()
        for name, text in (("docker", DOCKER), ("sleep", "#!/bin/sh\n")):
            program = home / "bin" / name
            program.write_text(text)
            program.chmod(0o755)
        (home / "containers").write_text("old1\nold2\n")

    def run(self, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": f"{self.home / 'bin'}:{os.environ['PATH']}", "FAKE_DOCKER": str(self.home)}
        return subprocess.run(
            [DEPLOY / script, *arguments], env=environment, capture_output=True, text=True, check=False, timeout=60
        )

    def calls(self) -> str:
        return (self.home / "calls").read_text()


@pytest.fixture
def docker(tmp_path: Path) -> Fake:
    return Fake(tmp_path / "docker")


def test_a_backup_is_finished_while_an_upload_grows(docker: Fake, tmp_path: Path) -> None:
    growing, stop = docker.home / "volumes" / "images" / "upload", threading.Event()
    growing.write_bytes(b"x" * (1 << 24))

    def write() -> None:
        with growing.open("ab", buffering=0) as file:
            while not stop.is_set():
                file.write(b"x" * 4096)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        done = docker.run("backup.sh", "save", str(tmp_path / "backup"))
    finally:
        stop.set()
        writer.join()
    assert done.returncode == 0, done.stderr
    assert "changed as we read it" in done.stderr
    assert len((tmp_path / "backup" / "SHA256SUMS").read_text().splitlines()) == 9
    assert docker.run("backup.sh", "restore", str(tmp_path / "backup")).returncode == 0


def test_a_backup_that_lacks_a_folder_says_that_it_is_not_finished(docker: Fake, tmp_path: Path) -> None:
    (docker.home / "volumes" / "fetcher" / "kept").unlink()
    (docker.home / "volumes" / "fetcher").rmdir()
    done = docker.run("backup.sh", "save", str(tmp_path / "backup"))
    assert done.returncode != 0
    assert f"FAILED: {tmp_path / 'backup'} is not finished" in done.stderr
    assert "holds no finished backup" in docker.run("backup.sh", "restore", str(tmp_path / "backup")).stderr


def test_a_backup_without_the_stacks_folder_ends_before_it_begins(docker: Fake, tmp_path: Path) -> None:
    (docker.home / "no_containers").touch()
    assert "is not finished" in docker.run("backup.sh", "save", str(tmp_path / "backup")).stderr
    assert "pg_dump" not in docker.calls()


def test_nothing_is_restored_beside_a_job_store_that_is_in_use(docker: Fake, tmp_path: Path) -> None:
    assert docker.run("backup.sh", "save", str(tmp_path / "backup")).returncode == 0
    (docker.home / "full_store").touch()
    done = docker.run("backup.sh", "restore", str(tmp_path / "backup"))
    assert done.returncode != 0
    assert "FAILED: nothing was restored" in done.stderr
    assert "pg_restore" not in docker.calls()


def test_new_containers_that_do_not_become_healthy_are_removed(docker: Fake) -> None:
    (docker.home / "up_code").write_text("1")
    done = docker.run("roll.sh", "auth", "vms")
    assert done.returncode == 1
    assert "why it does not start" in done.stdout + done.stderr
    assert "did not become healthy" in done.stderr
    assert (docker.home / "containers").read_text().split() == ["old1", "old2"]
    assert "stop" not in docker.calls()
    assert "vms=" not in docker.calls()


def test_old_containers_go_when_the_new_ones_are_healthy(docker: Fake) -> None:
    assert docker.run("roll.sh", "auth").returncode == 0
    assert (docker.home / "containers").read_text().split() == ["new1", "new2"]

#!/usr/bin/python3
"""Serves /srv on port 80 to one account, admin; whoever has not logged in sees a login form and nothing else.

FILEBROWSER_ADMIN_PASSWORD (or …_FILE): the account's password, required.
What it writes beside the served files goes to /tmp; nothing but /srv has to outlive the container.
"""

import os
import pathlib
import sys

from copyparty.__main__ import main

_STATE = "/tmp/copyparty"  # noqa: S108 - the container's own, and its only writable folder under a read-only root
_EDITABLE = (
    "c,cfg,conf,cpp,cs,css,csv,env,go,h,htaccess,htm,html,ini,java,js,json,jsx,lock,log,lua,md,mjs,php,pl,properties,"
    "py,rb,rs,scss,sh,sql,svelte,svg,toml,ts,tsx,txt,vue,xml,yaml,yml"
)


def _password() -> str:
    given = os.environ.pop("FILEBROWSER_ADMIN_PASSWORD", "")
    file = os.environ.pop("FILEBROWSER_ADMIN_PASSWORD_FILE", "")
    if given and file:
        sys.exit("set either FILEBROWSER_ADMIN_PASSWORD or FILEBROWSER_ADMIN_PASSWORD_FILE, not both")
    password = pathlib.Path(file).read_text().rstrip("\n") if file else given
    if not password:
        sys.exit("FILEBROWSER_ADMIN_PASSWORD is not set")
    return password


def _arguments(password: str) -> list[str]:
    """The arguments stay inside this process: none of them is for all to see in the list of processes."""
    return [
        "copyparty",
        *("-a", f"admin:{password}", "--usernames", "-v", "/srv::rwmd.,admin"),
        *("-i", "0.0.0.0", "-p", "80", "--http-only", "--no-crt"),  # noqa: S104 - the container's own network
        # Links that lead out of the tree are not followed.
        "--xvol",
        # Pages of the tree run no scripts here: they would run with the file manager's session.
        *("--no-script", "--no-logues", "--no-readme", "--no-robots"),
        # PUT replaces, the editor opens code; hidden files are part of the code and shown.
        *("--daw", "--wram", "-ed", "--rw-edit", _EDITABLE),
        *("--hist", _STATE, "--ses-db", f"{_STATE}/sessions.db", "--no-thumb", "--no-acode", "--no-mtag-ff"),
        # Guessing is slowed down, but nobody is locked out for long: behind a proxy all clients have one address.
        *("--ban-pw", "20,10,10", "--ban-403", "no", "--ban-404", "no", "--ban-422", "no", "--ban-url", "no"),
        *("--dont-ban", "auth", "--rproxy", "0", "-nih", "-nid", "--logout", "12"),
    ]


if __name__ == "__main__":
    os.environ["XDG_CONFIG_HOME"] = _STATE
    pathlib.Path(_STATE).mkdir(mode=0o700, exist_ok=True)
    main(_arguments(_password()))

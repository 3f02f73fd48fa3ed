"""Where code may come from: rules for Git references, and which type of app a tree of files is; pure."""

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

DEFAULT_REF = "HEAD"
READ_TO_DETECT = ("package.json",)
"""Files whose content tells something, too."""
_REF = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/+@-]{0,199}")
_FRONT_ENDS = ("react", "vue", "svelte", "@angular/core", "preact", "solid-js", "lit")
_NODE_SERVERS = ("next", "nuxt", "express", "fastify", "koa", "@nestjs/core", "hono", "@remix-run/node")


def is_git_ref(ref: str) -> bool:
    """Whether it may name a branch, a tag or a commit (git-check-ref-format), and nothing else."""
    wrong = ("..", "//", "@{", ".lock/", "/.")
    is_wrong = any(part in ref for part in wrong) or ref.endswith((".lock", "/", "."))
    return _REF.fullmatch(ref) is not None and not is_wrong


def detect_app(files: Collection[str], contents: Mapping[str, str]) -> str | None:
    """The template for a tree of code, by the names of the files at its root and `contents` of READ_TO_DETECT."""
    names = set(files)
    if "package.json" in names:
        return _javascript_app(contents.get("package.json", ""))
    if names & {"requirements.txt", "pyproject.toml", "Pipfile", "app.py", "main.py", "manage.py"}:
        return "python"
    if "composer.json" in names or any(name.endswith(".php") for name in names):
        return "php"
    if any(name.endswith((".html", ".htm")) for name in names):
        return "static"
    return None


def _javascript_app(text: str) -> str:
    """React (built to plain files) for what a front end's tools build; Node.js for what runs a server."""
    package = _object(text)
    used = {**_object(package.get("dependencies")), **_object(package.get("devDependencies"))}
    is_built = "build" in _object(package.get("scripts"))
    is_front_end = any(name in used for name in (*_FRONT_ENDS, "vite", "react-scripts"))
    is_server = any(name in used for name in _NODE_SERVERS)
    return "react" if is_built and is_front_end and not is_server else "nodejs"


def _object(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {}
    return value if isinstance(value, dict) else {}

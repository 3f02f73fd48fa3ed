"""Code with dependencies from the npm registry and PyPI, built as its owners would send it."""

import json
import re
from typing import Any

import pytest

from libs.common.testing.needs import missing
from tests.contract.containers.deploying import page, removed, running_stack
from tests.contract.containers.harness import Service

pytestmark = [pytest.mark.docker, pytest.mark.long]

_NO_WAY_OUT = ("ENOTFOUND", "EAI_AGAIN", "ETIMEDOUT", "ECONNREFUSED", "NewConnectionError", "NameResolutionError")

REACT = {
    "package.json": json.dumps(
        {
            "private": True,
            "scripts": {"build": "vite build"},
            "dependencies": {"react": "19.2.0", "react-dom": "19.2.0"},
            "devDependencies": {"vite": "7.1.12", "@vitejs/plugin-react": "5.0.4"},
        }
    ),
    "vite.config.js": 'import react from "@vitejs/plugin-react"; export default { plugins: [react()] };',
    "index.html": '<div id="root"></div><script type="module" src="/src/main.jsx"></script>',
    "src/main.jsx": """
        import { createRoot } from "react-dom/client";
        createRoot(document.getElementById("root")).render(<h1>made by React</h1>);""",
}
FLASK = {
    "requirements.txt": "flask==3.1.2\ngunicorn==23.0.0\n",
    "shop/__init__.py": """
from flask import Flask
app = Flask(__name__)
@app.get("/")
def index():
    return {"from": "flask"}
""",
}
EXPRESS = {
    "package.json": json.dumps({"main": "index.js", "dependencies": {"express": "5.1.0"}}),
    "index.js": """
        const server = require("express")().get("/", (_, answer) => answer.json({ from: "express" }))
          .listen(process.env.PORT);
        process.on("SIGTERM", () => server.close());""",
}


async def built(service: Service, kind: str, files: dict[str, str], **fields: Any) -> tuple[str, dict[str, Any]]:
    """Deploy it; gives its user and the stack. Ends the test where the registries cannot be reached."""
    user = await service.new_user()
    answer = await service.create(user, name="registry", service_types=kind, files=files, **fields)
    operation = await service.ended(user, answer.json()["id"], 115)
    reason = str(operation["error"])
    if operation["state"] == "failed" and any(word in reason for word in _NO_WAY_OUT):
        missing(f"containers on this machine do not reach the package registries: {reason[:200]}")
    return user, await running_stack(service, user, answer)


async def test_a_react_project_is_built_with_vite(deploying: Service) -> None:
    user, stack = await built(deploying, "React", REACT)
    start = await page(stack["url"])
    bundle = re.search(r'src="(/assets/[^"]+\.js)"', start)
    assert bundle
    assert "made by React" in await page(stack["url"] + bundle[1])
    assert await page(stack["url"] + "/a/route/of/its/own") == start
    await removed(deploying, user, stack)


@pytest.mark.parametrize(
    ("kind", "files", "variables"),
    [
        ("Node.js", EXPRESS, {"nodejs_command": "node index.js"}),
        ("Python", FLASK, {"python_command": "gunicorn --bind 0.0.0.0:$PORT shop:app"}),
    ],
)
async def test_an_application_gets_its_packages_from_their_registry(
    deploying: Service, kind: str, files: dict[str, str], variables: dict[str, str]
) -> None:
    user, stack = await built(deploying, kind, files, variables=json.dumps(variables))
    assert json.loads(await page(stack["url"]))["from"] in ("express", "flask")
    await removed(deploying, user, stack)

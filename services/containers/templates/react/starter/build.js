// Stands in for your front end: this stack was created without a ZIP.
const fs = require("node:fs");

fs.mkdirSync("dist", { recursive: true });
fs.writeFileSync(
  "dist/index.html",
  `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>It works</title>
<h1>It works</h1>
<p>Node.js ${process.version} built this page. The stack was created without a ZIP, so it stands in for your project.</p>
</html>
`,
);

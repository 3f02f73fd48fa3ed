// Stands in for your application: this stack was created without a ZIP.
const http = require("node:http");

const page = `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>It works</title>
<h1>It works</h1>
<p>This stack runs Node.js ${process.version}. It was created without a ZIP, so this page stands in for your application.</p>
</html>
`;

const server = http.createServer((request, response) => {
  response.writeHead(200, { "content-type": "text/html; charset=utf-8" });
  response.end(page);
});
server.listen(process.env.PORT);
process.on("SIGTERM", () => server.close());

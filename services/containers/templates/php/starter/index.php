<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>It works</title>
<h1>It works</h1>
<p>This stack runs PHP <?= htmlspecialchars(PHP_VERSION) ?>. It was created without a ZIP, so this page stands in for your application.</p>
</html>

#!/usr/bin/env bash
# Fetches mongo-java-server with its H2 store for the tests of the fetcher's job store; run it as often as you like.
#
#   TELAR_TEST_CACHE   where the jars go (default ~/.cache/telar-tests), shared by all checkouts
#
# The jars come by their Maven coordinates (mongo-java-server/pom.xml) from wherever Maven is set up to look, and are
# used only if each has the digest that mongo-java-server/SHA256SUMS pins. As root on Debian a JDK and Maven are
# installed where they are missing; otherwise the tests that need this server say so and are skipped.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/mongo-java-server
cache=${TELAR_TEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/telar-tests}/mongo-java-server-1.47.0
plugin=org.apache.maven.plugins:maven-dependency-plugin:2.8

say() { echo "mongo-java-server: $*"; }
tools() { command -v mvn >/dev/null && java --list-modules 2>/dev/null | grep -q '^jdk.compiler@'; }
intact() { (cd "$1" 2>/dev/null && sha256sum --quiet --strict --check "$here/SHA256SUMS" >/dev/null 2>&1); }

if ! tools && [ "$(id -u)" -eq 0 ] && [ -f /etc/debian_version ]; then
    say "installing Debian's JDK and Maven"
    apt-get update -q >/dev/null
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends default-jdk-headless maven >/dev/null
fi
if ! tools; then
    say "not set up: a JDK and Maven are needed (Debian: apt-get install default-jdk-headless maven)"
    exit 0
fi
if intact "$cache/jars"; then
    say "ready: $cache/jars"
    exit 0
fi

mkdir -p "$cache"
fresh=$(mktemp -d "$cache/fetching-XXXXXX")
trap 'rm -rf "$fresh"' EXIT
say "fetching the jars with Maven"
if ! timeout 300 mvn -q -B -f "$here/pom.xml" "$plugin:copy-dependencies" "-DoutputDirectory=$fresh" \
    >"$cache/maven.log" 2>&1; then
    say "not set up: Maven could not fetch the jars; see $cache/maven.log"
    exit 0
fi
if ! intact "$fresh"; then
    say "FAILED: what was fetched does not have the pinned digests; it is not used" >&2
    exit 1
fi
rm -rf "$cache/jars"
mv "$fresh" "$cache/jars"
say "ready: $cache/jars"

#!/usr/bin/env bash
# Says where this machine gets its Debian packages from: "<main|updates|security> <mirror URI> <keyring or ->" per line.
#
# The answer is read from apt's own configuration, whichever form its source lists have, so that nothing in this
# repository names a mirror. Prints nothing (and succeeds) on a machine without Debian sources.
# shellcheck disable=SC1091,SC2016 # os-release is the machine's; $(RELEASE) and the like are for apt to fill in
set -euo pipefail

command -v apt-get >/dev/null || exit 0
codename=$(. /etc/os-release && [ "${ID:-}" = debian ] && echo "${VERSION_CODENAME:-}") || exit 0
[ -n "$codename" ] || exit 0

# A file says Signed-By in one of two forms; a key written out inside the file is not a path and counts as absent:
# apt's trusted keys then decide.
keyring_of() {
    sed -nE 's/^[Ss]igned-[Bb]y:[[:space:]]*(\/[^[:space:]]+).*/\1/p; s/^deb .*signed-by=(\/[^],[:space:]]+).*/\1/p' "$1" | head -n 1
}

declare -A seen=()
while IFS='|' read -r release component uri origin entry; do
    [ "$component" = main ] || continue
    # apt leaves the placeholder in place when the mirror's Release file has not been fetched yet.
    case $origin in Debian | '' | '$('*) ;; *) continue ;; esac
    case $release in
        "$codename") kind=main ;;
        "$codename-updates") kind=updates ;;
        "$codename-security") kind=security ;;
        *) continue ;;
    esac
    [ -z "${seen[$kind]:-}" ] || continue
    seen[$kind]=1
    keyring=$(keyring_of "${entry%:*}")
    echo "$kind ${uri%/} ${keyring:--}"
done < <(apt-get indextargets --format '$(RELEASE)|$(COMPONENT)|$(REPO_URI)|$(ORIGIN)|$(SOURCESENTRY)' 'Identifier: Packages')

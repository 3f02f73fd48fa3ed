#!/usr/bin/env bash
# Starts Redis in /data as its own user, with the arguments the official image takes.
#
#   REDIS_PASSWORD    what clients have to say (also as REDIS_PASSWORD_FILE); without one, and without --requirepass
#                     or a configuration file, Redis answers only clients in its own container
set -euo pipefail

# No command, or only options or a configuration file: they are for the server.
case ${1:-} in '' | -* | *.conf) set -- redis-server "$@" ;; esac
[ "$1" = redis-server ] || exec "$@"

if [ "$(id -u)" = 0 ]; then
    find /data \! -user redis -exec chown redis: {} +
    exec setpriv --reuid=redis --regid=redis --init-groups "$0" "$@"
fi

if [ -n "${REDIS_PASSWORD_FILE:-}" ]; then
    [ -z "${REDIS_PASSWORD:-}" ] || { echo "set either REDIS_PASSWORD or REDIS_PASSWORD_FILE, not both" >&2; exit 1; }
    REDIS_PASSWORD=$(<"$REDIS_PASSWORD_FILE")
fi
# Through a pipe: arguments are for all to see in the list of processes.
[ -n "${REDIS_PASSWORD:-}" ] || exec "$@"
password=${REDIS_PASSWORD//\\/\\\\}
exec "$@" - < <(printf 'requirepass "%s"\n' "${password//\"/\\\"}")

#!/usr/bin/env bash
# Starts FerretDB on SQLite files in /data/db, with the settings the official MongoDB image has.
#
#   MONGO_INITDB_ROOT_USERNAME, MONGO_INITDB_ROOT_PASSWORD   the first user, made when there is none yet (SCRAM); each
#                                                            also as …_FILE; without them everybody is let in
set -euo pipefail

data=/data/db

from_file() {
    local name=$1 file_name=${1}_FILE
    [ -n "${!file_name:-}" ] || return 0
    [ -z "${!name:-}" ] || { echo "set either $name or $file_name, not both" >&2; exit 1; }
    export "$name=$(<"${!file_name}")"
}

# No command, or only options: they are for the server. Files written for MongoDB say mongod.
case ${1:-} in '' | -*) set -- ferretdb "$@" ;; mongod) set -- ferretdb "${@:2}" ;; esac
[ "$1" = ferretdb ] || exec "$@"

if [ "$(id -u)" = 0 ]; then
    find "$data" \! -user mongodb -exec chown mongodb: {} +
    exec setpriv --reuid=mongodb --regid=mongodb --init-groups "$0" "$@"
fi

for name in MONGO_INITDB_ROOT_USERNAME MONGO_INITDB_ROOT_PASSWORD; do from_file "$name"; done
if [ -n "${MONGO_INITDB_ROOT_USERNAME:-}" ]; then
    [ -n "${MONGO_INITDB_ROOT_PASSWORD:-}" ] || { echo "MONGO_INITDB_ROOT_PASSWORD is not set" >&2; exit 1; }
    export FERRETDB_SETUP_DATABASE=admin FERRETDB_SETUP_USERNAME=$MONGO_INITDB_ROOT_USERNAME
    export FERRETDB_SETUP_PASSWORD=$MONGO_INITDB_ROOT_PASSWORD FERRETDB_TEST_ENABLE_NEW_AUTH=true
fi
unset MONGO_INITDB_ROOT_PASSWORD
export FERRETDB_HANDLER=sqlite FERRETDB_SQLITE_URL=file:$data/ FERRETDB_STATE_DIR=$data
# Its warnings print whole documents, which are none of the log's business.
export FERRETDB_LISTEN_ADDR=0.0.0.0:27017 FERRETDB_DEBUG_ADDR=- FERRETDB_TELEMETRY=disable FERRETDB_LOG_LEVEL=${FERRETDB_LOG_LEVEL:-error}
exec "$@"

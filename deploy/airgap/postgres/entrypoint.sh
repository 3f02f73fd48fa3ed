#!/usr/bin/env bash
# Starts PostgreSQL; on an empty volume it makes the cluster first, with the settings the official image has.
#
#   POSTGRES_PASSWORD           required, unless POSTGRES_HOST_AUTH_METHOD=trust
#   POSTGRES_USER, POSTGRES_DB  superuser (default postgres) and first database (default: the user's name)
#   POSTGRES_INITDB_ARGS        more arguments for initdb
#   …_FILE                      each of the first three can be read from a file (Docker secrets)
# Then /docker-entrypoint-initdb.d/*.sh, *.sql and *.sql.gz run once, in the order of their names.
set -euo pipefail

from_file() {
    local name=$1 file_name=${1}_FILE
    [ -n "${!file_name:-}" ] || return 0
    [ -z "${!name:-}" ] || { echo "set either $name or $file_name, not both" >&2; exit 1; }
    export "$name=$(<"${!file_name}")"
    unset "$file_name"
}

create_cluster() {
    local auth=${POSTGRES_HOST_AUTH_METHOD:-scram-sha-256}
    if [ -z "${POSTGRES_PASSWORD:-}" ] && [ "$auth" != trust ]; then
        echo "POSTGRES_PASSWORD is not set. Give one (or, for a throw-away database, POSTGRES_HOST_AUTH_METHOD=trust)." >&2
        exit 1
    fi
    # shellcheck disable=SC2086 # several arguments in one variable, as in the official image
    initdb --username="$POSTGRES_USER" --pwfile=<(printf '%s\n' "${POSTGRES_PASSWORD:-}") --auth-local=trust --auth-host="$auth" \
        --encoding=UTF8 --locale=C.UTF-8 ${POSTGRES_INITDB_ARGS:-} >/dev/null
    echo "host all all all $auth" >>"$PGDATA/pg_hba.conf"
    echo "listen_addresses = '*'" >>"$PGDATA/postgresql.conf"
}

run_init_files() {
    local file
    for file in /docker-entrypoint-initdb.d/*; do
        case $file in
            *.sh)
                echo "running $file"
                # shellcheck disable=SC1090 # as in the official image: what is not executable is sourced
                if [ -x "$file" ]; then "$file"; else . "$file"; fi
                ;;
            *.sql) echo "running $file"; "${psql[@]}" -f "$file" ;;
            *.sql.gz) echo "running $file"; gunzip -c "$file" | "${psql[@]}" ;;
        esac
    done
}

# What a failed first run leaves behind would look like a finished cluster to the next start.
undo_first_run() {
    echo "the first run failed: emptying $PGDATA" >&2
    pg_ctl -D "$PGDATA" -m immediate -s stop 2>/dev/null || true
    find "$PGDATA" -mindepth 1 -delete
}

first_run() {
    echo "making a new cluster in $PGDATA"
    trap undo_first_run EXIT
    create_cluster
    # No TCP yet: nobody may see a database that is only half set up.
    pg_ctl -D "$PGDATA" -s -w -o "-c listen_addresses=''" start
    psql=(psql -v ON_ERROR_STOP=1 --no-psqlrc --quiet --username "$POSTGRES_USER" --dbname)
    if [ "$POSTGRES_DB" != postgres ]; then
        echo 'CREATE DATABASE :"name"' | "${psql[@]}" postgres -v name="$POSTGRES_DB"
    fi
    psql+=("$POSTGRES_DB")
    run_init_files
    pg_ctl -D "$PGDATA" -s -w -m fast stop
    trap - EXIT
}

# No command, or only options: they are for the server.
case ${1:-} in '' | -*) set -- postgres "$@" ;; esac
[ "$1" = postgres ] || exec "$@"

# A wrong folder, or a disk that lost files: a first run would fail, and empty it.
if [ ! -s "$PGDATA/PG_VERSION" ] && [ -n "$(ls -A "$PGDATA" 2>/dev/null)" ]; then
    echo "$PGDATA is not empty and holds no database of PostgreSQL's, or a damaged one: it is left as it is. Give an empty volume." >&2
    exit 1
fi

if [ "$(id -u)" = 0 ]; then
    mkdir -p "$PGDATA" /var/run/postgresql
    find "$PGDATA" /var/run/postgresql \! -user postgres -exec chown postgres: {} +
    chmod 0700 "$PGDATA"
    exec setpriv --reuid=postgres --regid=postgres --init-groups "$0" "$@"
fi

if [ ! -s "$PGDATA/PG_VERSION" ]; then
    for name in POSTGRES_PASSWORD POSTGRES_USER POSTGRES_DB; do from_file "$name"; done
    export POSTGRES_USER=${POSTGRES_USER:-postgres}
    export POSTGRES_DB=${POSTGRES_DB:-$POSTGRES_USER}
    first_run
fi
unset POSTGRES_PASSWORD
exec "$@"

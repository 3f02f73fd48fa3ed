#!/usr/bin/env bash
# Starts MariaDB; on an empty volume it makes the database first, with the settings the official image has.
#
#   MARIADB_ROOT_PASSWORD              required, unless one of the two below is set
#   MARIADB_RANDOM_ROOT_PASSWORD       any text: make one up and print it once
#   MARIADB_ALLOW_EMPTY_ROOT_PASSWORD  any text: for throw-away databases
#   MARIADB_DATABASE                   database to make
#   MARIADB_USER, MARIADB_PASSWORD     user to make, who owns that database
#   …_FILE                             each of them can be read from a file (Docker secrets)
#   MYSQL_…                            the same names, for what was written for MySQL
# Then /docker-entrypoint-initdb.d/*.sh, *.sql and *.sql.gz run once, in the order of their names.
set -euo pipefail

data=/var/lib/mysql
socket=/run/mysqld/mysqld.sock
# There while the first run lasts: a container that was killed then has no database yet, whatever its folder holds.
making=$data/.making

setting() {
    local name file_name
    for name in "MARIADB_$1" "MYSQL_$1"; do
        file_name=${name}_FILE
        if [ -n "${!name:-}" ] && [ -n "${!file_name:-}" ]; then
            echo "set either $name or $file_name, not both" >&2
            exit 1
        fi
        if [ -n "${!name:-}" ]; then
            printf '%s' "${!name}"
            return
        fi
        if [ -n "${!file_name:-}" ]; then
            printf '%s' "$(<"${!file_name}")"
            return
        fi
    done
}

# A text as an SQL literal, a name as an SQL identifier.
quoted() { printf "'%s'" "$(sed "s/\\\\/\\\\\\\\/g; s/'/''/g" <<<"$1")"; }
# shellcheck disable=SC2016 # the backticks are SQL's
named() { printf '`%s`' "${1//\`/\`\`}"; }

root_password() {
    local password
    password=$(setting ROOT_PASSWORD)
    if [ -z "$password" ] && [ -n "$(setting RANDOM_ROOT_PASSWORD)" ]; then
        password=$(head -c 24 /dev/urandom | base64)
        echo "the root password is: $password" >&2
    fi
    if [ -z "$password" ] && [ -z "$(setting ALLOW_EMPTY_ROOT_PASSWORD)" ]; then
        echo "MARIADB_ROOT_PASSWORD is not set. Give one (or, for a throw-away database, MARIADB_ALLOW_EMPTY_ROOT_PASSWORD=1)." >&2
        exit 1
    fi
    printf '%s' "$password"
}

accounts() {
    local root=$1 database user password
    database=$(setting DATABASE)
    user=$(setting USER)
    password=$(setting PASSWORD)
    if [ -n "$user" ] && [ -z "$password" ]; then
        echo "MARIADB_USER needs MARIADB_PASSWORD" >&2
        exit 1
    fi
    # Inside the container root is let in as himself, too; from elsewhere only with the password.
    echo "ALTER USER 'root'@'localhost' IDENTIFIED VIA unix_socket OR mysql_native_password USING PASSWORD($(quoted "$root"));"
    echo "CREATE USER 'root'@'%' IDENTIFIED BY $(quoted "$root");"
    echo "GRANT ALL ON *.* TO 'root'@'%' WITH GRANT OPTION;"
    if [ -n "$database" ]; then
        echo "CREATE DATABASE IF NOT EXISTS $(named "$database");"
    fi
    if [ -n "$user" ]; then
        echo "CREATE USER $(quoted "$user")@'%' IDENTIFIED BY $(quoted "$password");"
        # An underscore in a granted database's name stands for any character, unless it is escaped.
        [ -z "$database" ] || echo "GRANT ALL ON $(named "${database//_/\\_}").* TO $(quoted "$user")@'%';"
    fi
}

run_init_files() {
    local file database
    database=$(setting DATABASE)
    for file in /docker-entrypoint-initdb.d/*; do
        case $file in
            *.sh)
                echo "running $file"
                # shellcheck disable=SC1090 # as in the official image: what is not executable is sourced
                if [ -x "$file" ]; then "$file"; else . "$file"; fi
                ;;
            *.sql) echo "running $file"; mariadb --socket="$socket" ${database:+"$database"} <"$file" ;;
            *.sql.gz) echo "running $file"; gunzip -c "$file" | mariadb --socket="$socket" ${database:+"$database"} ;;
        esac
    done
}

# What a failed first run leaves behind would look like a finished database to the next start.
undo_first_run() {
    echo "the first run failed: emptying $data" >&2
    [ -z "${server:-}" ] || kill -KILL "$server" 2>/dev/null || true
    find "$data" -mindepth 1 -delete
}

first_run() {
    local root statements
    root=$(root_password)
    statements=$(accounts "$root")
    echo "making a new database in $data"
    trap undo_first_run EXIT
    trap 'exit 143' TERM INT
    find "$data" -mindepth 1 -delete
    touch "$making"
    mariadb-install-db --datadir="$data" --auth-root-authentication-method=socket \
        --auth-root-socket-user="$(id -un)" --skip-test-db >/dev/null
    # No TCP yet: nobody may see a database that is only half set up.
    "$@" --skip-networking --socket="$socket" &
    server=$!
    until mariadb-admin --socket="$socket" --silent ping >/dev/null 2>&1; do
        kill -0 "$server"
        sleep 0.2
    done
    mariadb --socket="$socket" <<<"$statements"
    run_init_files
    mariadb-admin --socket="$socket" shutdown
    wait "$server"
    rm "$making"
    trap - EXIT TERM INT
}

# No command, or only options: they are for the server. Files written for the official images say mysqld.
case ${1:-} in '' | -*) set -- mariadbd "$@" ;; mysqld) set -- mariadbd "${@:2}" ;; esac
[ "$1" = mariadbd ] || exec "$@"

# A wrong folder, or a disk that lost files: a first run would empty it.
if [ ! -e "$making" ] && [ ! -d "$data/mysql" ] && [ -n "$(ls -A "$data" 2>/dev/null)" ]; then
    echo "$data is not empty and holds no database of MariaDB's, or a damaged one: it is left as it is. Give an empty volume." >&2
    exit 1
fi

if [ "$(id -u)" = 0 ]; then
    mkdir -p "$data" "${socket%/*}"
    find "$data" "${socket%/*}" \! -user mysql -exec chown mysql: {} +
    exec setpriv --reuid=mysql --regid=mysql --init-groups "$0" "$@"
fi

if [ -e "$making" ] || [ ! -d "$data/mysql" ]; then first_run "$@"; fi
for name in "${!MARIADB_@}" "${!MYSQL_@}"; do case $name in *PASSWORD) unset "$name" ;; esac; done
exec "$@"

#!/usr/bin/env bash
# Runs once, on PostgreSQL's first start: a role and a database for each service, as its secret names them.
# A secret is telar_<service>_database_url: postgresql://<role>:<password>@<host>/<database>
set -euo pipefail

for secret in /run/secrets/telar_*_database_url; do
    url=$(<"$secret")
    if [[ ! $url =~ ^postgresql://([a-z_]+):([A-Za-z0-9_-]+)@[^/]+/([a-z_]+)$ ]]; then
        echo "$secret is not postgresql://role:password@host/database with a password of A-Z a-z 0-9 _ -" >&2
        exit 1
    fi
    psql --no-psqlrc --quiet -v ON_ERROR_STOP=1 --username "${POSTGRES_USER:-postgres}" --dbname postgres \
        -v role="${BASH_REMATCH[1]}" -v password="${BASH_REMATCH[2]}" -v database="${BASH_REMATCH[3]}" <<'SQL'
CREATE ROLE :"role" LOGIN PASSWORD :'password';
CREATE DATABASE :"database" OWNER :"role";
REVOKE CONNECT ON DATABASE :"database" FROM PUBLIC;
SQL
done

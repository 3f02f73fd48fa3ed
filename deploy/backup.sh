#!/usr/bin/env bash
# Saves what Telar in containers keeps, and brings it back into a deployment that keeps nothing yet.
#
#   deploy/backup.sh save FOLDER      every service's database, the gateway's keys, image files, pictures, stacks' sources
#   deploy/backup.sh restore FOLDER   into new, empty volumes, with the same folder of secrets
#
# It asks Docker Compose as you do, so it honours COMPOSE_FILE, COMPOSE_PROJECT_NAME, COMPOSE_PROFILES and .env. `save` works
# while everything runs: a database is saved as of one moment, and files after the databases that name them. For one moment
# over all of them stop the services first: docker compose stop gateway auth images vms containers fetcher
#
# Not in it: the folder of secrets (keep it apart, encrypted), buckets of S3, volumes of users' stacks, the clusters.
set -euo pipefail

databases=(auth images vms containers)
# service, and the folder in its container that is its own
stores=("gateway /var/lib/telar" "images /var/lib/telar" "fetcher /var/lib/telar")

say() { echo "backup: $*"; }
die() {
    echo "backup: FAILED: $*" >&2
    exit 1
}
compose() { docker compose "$@"; }

# A container of the service's own kind, for one command; its volumes are the running one's.
once() {
    local service=$1 program=$2
    shift 2
    compose run --rm --no-deps -T --entrypoint "$program" "$service" "$@"
}

stacks_folder() { once containers printenv TELAR_CONTAINERS_STACKS_DIR </dev/null | tr -d '\r\n'; }

all_stores() {
    printf '%s\n' "${stores[@]}"
    echo "containers $(stacks_folder)"
}

save() {
    local folder=$1 name service path
    mkdir -p "$folder"
    chmod 0700 "$folder"
    [ -z "$(ls -A "$folder")" ] || die "$folder is not empty"
    for name in "${databases[@]}"; do
        compose exec -T postgres pg_dump --username postgres --format custom "telar_$name" </dev/null >"$folder/$name.dump"
    done
    once migrate telar documents save </dev/null >"$folder/fetcher.documents"
    while read -r service path; do
        once "$service" tar --create --directory "$path" . </dev/null >"$folder/$service.tar"
    done < <(all_stores)
    (cd "$folder" && sha256sum -- * >SHA256SUMS)
    say "saved in $folder: $(du -sh "$folder" | cut -f1)"
}

restore() {
    local folder=$1 name service path
    [ -f "$folder/SHA256SUMS" ] || die "$folder holds no finished backup"
    (cd "$folder" && sha256sum --quiet --check SHA256SUMS) || die "$folder is damaged"
    compose stop gateway auth images vms containers fetcher
    compose up -d --wait postgres mongodb rabbitmq
    for name in "${databases[@]}"; do
        [ "$(tables_of "$name")" = 0 ] || die "the database telar_$name is not empty: remove the volumes first"
    done
    for name in "${databases[@]}"; do
        compose exec -T postgres pg_restore --username postgres --dbname "telar_$name" --role "telar_$name" --no-owner \
            --exit-on-error <"$folder/$name.dump"
    done
    once migrate telar migrate </dev/null
    once migrate telar documents load <"$folder/fetcher.documents"
    while read -r service path; do
        once "$service" tar --extract --directory "$path" <"$folder/$service.tar"
    done < <(all_stores)
    compose up -d --wait
    say "restored from $folder; Telar runs"
}

tables_of() {
    compose exec -T postgres psql --username postgres --dbname "telar_$1" --no-psqlrc --tuples-only --no-align \
        --command "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'" </dev/null
}

case ${1:-} in
    save | restore)
        [ $# -eq 2 ] || die "name the folder: $0 $1 FOLDER"
        "$1" "$2"
        ;;
    *) sed -n '2,12s/^# \{0,1\}//p' "$0" ;;
esac

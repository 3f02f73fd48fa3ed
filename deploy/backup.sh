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

# What to tell if this ends before it is done.
unfinished=
trap '[ -z "$unfinished" ] || echo "backup: FAILED: $unfinished" >&2' EXIT

say() { echo "backup: $*"; }
die() {
    unfinished=$*
    exit 1
}
compose() { docker compose "$@"; }

# A container of the service's own kind, for one command; its volumes are the running one's.
once() {
    local service=$1 program=$2
    shift 2
    compose run --rm --no-deps -T --entrypoint "$program" "$service" "$@"
}

add_stacks_folder() {
    local path
    path=$(once containers printenv TELAR_CONTAINERS_STACKS_DIR </dev/null | tr -d '\r\n')
    stores+=("containers $path")
}

save() {
    local folder=$1 name service path
    mkdir -p "$folder"
    chmod 0700 "$folder"
    [ -z "$(ls -A "$folder")" ] || die "$folder is not empty"
    unfinished="$folder is not finished: remove it and begin again"
    add_stacks_folder
    for name in "${databases[@]}"; do
        compose exec -T postgres pg_dump --username postgres --format custom "telar_$name" </dev/null >"$folder/$name.dump"
    done
    once migrate telar documents save </dev/null >"$folder/fetcher.documents"
    while read -r service path; do
        # 1: something was written or removed meanwhile. What a database names has been whole before it was named.
        once "$service" sh -c 'tar --create --directory "$1" . || [ $? -eq 1 ]' tar "$path" </dev/null >"$folder/$service.tar"
    done < <(printf '%s\n' "${stores[@]}")
    (cd "$folder" && sha256sum -- * >.sums && sync -- * .sums && mv .sums SHA256SUMS)
    unfinished=
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
    unfinished="nothing was restored: see above"
    # First, for it refuses a job store that is not empty.
    once migrate telar migrate fetcher </dev/null
    once migrate telar documents load <"$folder/fetcher.documents"
    unfinished="only a part is restored: remove the volumes and begin again"
    add_stacks_folder
    for name in "${databases[@]}"; do
        compose exec -T postgres pg_restore --username postgres --dbname "telar_$name" --role "telar_$name" --no-owner \
            --exit-on-error <"$folder/$name.dump"
    done
    once migrate telar migrate </dev/null
    while read -r service path; do
        once "$service" tar --extract --directory "$path" <"$folder/$service.tar"
    done < <(printf '%s\n' "${stores[@]}")
    unfinished="everything is restored, but not all of it runs: see above"
    compose up -d --wait
    unfinished=
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

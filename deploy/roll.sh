#!/usr/bin/env bash
# Replaces services' containers by new ones without an interruption: after a new image, or other settings.
#
#   deploy/roll.sh                    auth images vms containers fetcher, one after the other
#   deploy/roll.sh SERVICE…           those
#
# As many new containers as there are start beside the old ones; once they are healthy the old ones finish what they have
# under way and go. If they do not become healthy they are removed, and the old ones go on. The gateway holds a port of the host and cannot be two: docker compose up -d gateway replaces it within
# seconds (behind a proxy run two on two ports; on Swarm it needs neither). It honours COMPOSE_FILE and the like.
set -euo pipefail

services=("$@")
[ $# -gt 0 ] || services=(auth images vms containers fetcher)

roll() {
    local service=$1 old=() before=() new=() count
    mapfile -t old < <(docker compose ps --quiet "$service")
    count=${#old[@]}
    if [ "$count" -eq 0 ]; then
        echo "roll: $service does not run" >&2
        return 1
    fi
    mapfile -t before < <(docker compose ps --all --quiet "$service")
    if ! docker compose up -d --no-deps --no-recreate --wait --scale "$service=$((2 * count))" "$service"; then
        mapfile -t new < <(docker compose ps --all --quiet "$service" | grep -vxF -f <(printf '%s\n' "${before[@]}"))
        if [ ${#new[@]} -gt 0 ]; then
            docker logs --tail 20 "${new[0]}" >&2 || true
            docker rm --force "${new[@]}" >/dev/null
        fi
        echo "roll: FAILED: new containers of $service did not become healthy and are removed; the old ones go on" >&2
        return 1
    fi
    # The gateway asks for addresses every two seconds: it knows the new ones before the old ones go.
    sleep 3
    docker stop "${old[@]}" >/dev/null
    docker rm "${old[@]}" >/dev/null
    echo "roll: $service has $count new container(s)"
}

for service in "${services[@]}"; do
    roll "$service"
done

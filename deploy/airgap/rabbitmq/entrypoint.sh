#!/usr/bin/env bash
# Starts RabbitMQ in the foreground as its own user.
#
#   RABBITMQ_DEFAULT_USER, RABBITMQ_DEFAULT_PASS, RABBITMQ_DEFAULT_VHOST   read by the server itself on its first start
#   RABBITMQ_ERLANG_COOKIE                                                 shared secret of a cluster's nodes
set -euo pipefail

case ${1:-} in rabbitmq*) ;; *) exec "$@" ;; esac

if [ "$(id -u)" = 0 ]; then
    find /var/lib/rabbitmq \! -user rabbitmq -exec chown rabbitmq: {} +
    if [ -n "${RABBITMQ_ERLANG_COOKIE:-}" ]; then
        install -o rabbitmq -g rabbitmq -m 0600 <(printf '%s' "$RABBITMQ_ERLANG_COOKIE") /var/lib/rabbitmq/.erlang.cookie
        unset RABBITMQ_ERLANG_COOKIE
    fi
    exec setpriv --reuid=rabbitmq --regid=rabbitmq --init-groups "$@"
fi
exec "$@"

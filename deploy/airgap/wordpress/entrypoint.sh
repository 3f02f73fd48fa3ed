#!/usr/bin/env bash
# Serves the WordPress in /var/www/html; an empty volume gets the image's files first, and one with an older WordPress
# gets the image's newer one (its wp-content and wp-config.php stay).
#
#   WORDPRESS_DB_HOST, WORDPRESS_DB_NAME, WORDPRESS_DB_USER, WORDPRESS_DB_PASSWORD, WORDPRESS_TABLE_PREFIX,
#   WORDPRESS_DEBUG, WORDPRESS_CONFIG_EXTRA   read by wp-config.php at each request, as in the official image;
#   …_FILE                                    each can be read from a file (Docker secrets)
set -euo pipefail

root=/var/www/html
image=/usr/src/wordpress
name=wp-includes/version.php

version_in() { sed -nE "s/^\\\$wp_version = '([^']+)';/\\1/p" "$1/$name"; }

# wp-config.php gets keys of its own; whoever knows them can forge a log-in.
write_config() {
    local line key
    while IFS= read -r line; do
        while [[ $line == *put-your-unique-phrase-here* ]]; do
            key=$(head -c 48 /dev/urandom | base64 -w 0)
            line=${line/put-your-unique-phrase-here/"$key"}
        done
        printf '%s\n' "$line"
    done <"$image/wp-config.php" >"$root/wp-config.php.new"
    chmod 0640 "$root/wp-config.php.new"
    mv "$root/wp-config.php.new" "$root/wp-config.php"
}

# The version's file comes last: a copy that was broken off is begun again.
copy_files() {
    local excluded=(--exclude=./wp-config.php --exclude="./$name")
    [ ! -d "$root/wp-content" ] || excluded+=(--exclude=./wp-content)
    tar -C "$image" -c "${excluded[@]}" . | tar -C "$root" -x --no-same-owner --no-overwrite-dir
    cp "$image/$name" "$root/$name"
}

prepare() {
    if [ ! -e "$root/$name" ] || dpkg --compare-versions "$(version_in "$image")" gt "$(version_in "$root")"; then
        echo "copying WordPress $(version_in "$image") to $root"
        copy_files
    fi
    [ -e "$root/wp-config.php" ] || write_config
}

if [ "${1:-}" = --prepare ]; then
    prepare
    exit
fi
if [ "$(id -u)" = 0 ]; then
    # Apache gives its workers to www-data by itself; the files have to be that user's from the start.
    find "$root" \! -user www-data -exec chown www-data: {} +
    setpriv --reuid=www-data --regid=www-data --init-groups "$0" --prepare
else
    prepare
fi
exec telar-entrypoint "$@"

#!/bin/sh
# Makes the folders that Apache expects under /run, which is empty at each start, and becomes the command.
set -e # not -u: the file below asks for variables that may be unset
# shellcheck disable=SC1091 # Apache's own file in the image
. /etc/apache2/envvars
mkdir -p /run/lock "$APACHE_RUN_DIR"
exec "$@"

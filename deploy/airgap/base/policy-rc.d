#!/bin/sh
# Packages must not start services while an image is built: each image's entry point does.
exit 101

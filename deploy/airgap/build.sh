#!/usr/bin/env bash
# Builds container images from Debian 13 packages, for hosts that reach a Debian mirror but no image registry.
#
#   build.sh               the images Telar itself needs: postgres rabbitmq nginx
#   build.sh stacks        the images that stack templates run on
#   build.sh telar         Telar's own image, on telar/python
#   build.sh NAME…         those images (build.sh --list names all); what they stand on is made when it is missing
#
#   FORCE=1                build again what is there and current (FORCE=1 build.sh base renews the base)
#   TELAR_DEBIAN_MIRROR    take the packages from this mirror (default: the one this machine uses, else debootstrap's own)
#   TELAR_IMAGE_PREFIX     name prefix of the images (default telar)
#   PIP_INDEX_URL, GOPROXY take Python and Go packages from there (copyparty and ferretdb are not in Debian)
#   TELAR_BUILD_DIR        where logs and the unpacked base go while building (default /var/tmp/telar-airgap)
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
project=$(cd "$here/../.." && pwd)
suite=trixie
prefix=${TELAR_IMAGE_PREFIX:-telar}
base=$prefix/base:$suite
work=${TELAR_BUILD_DIR:-/var/tmp/telar-airgap}
default_names=(postgres rabbitmq nginx)
stack_names=(nginx php nodejs python postgres mariadb redis ferretdb wordpress copyparty)
declare -A versions=(
    [postgres]=17 [rabbitmq]=4.0 [nginx]=1.26 [php]=8.4 [nodejs]=20 [python]=3.13 [mariadb]=11.8 [redis]=8.0
    [ferretdb]=1.24 [wordpress]=6.8 [copyparty]=1.20 [telar]=latest
)
# Says of an image what it was made of, so that it is made anew when that has changed.
source_label=telar.image.source
# Images that stand on another one than the base.
declare -A parents=([wordpress]=php [telar]=python)

say() { echo "airgap: $*"; }
die() {
    echo "airgap: FAILED: $1" >&2
    shift
    for line in "$@"; do echo "airgap:   $line" >&2; done
    exit 1
}

tag_of() { echo "$prefix/$1:${versions[$1]}"; }
exists() { [ -z "${FORCE:-}" ] && docker image inspect "$1" >/dev/null 2>&1; }

# What an image is made of here: its own folder, and that of the image it stands on.
source_of() {
    local folders=("$here/$1")
    [ "$1" != telar ] || folders=("$project"/{requirements.lock,deploy/Dockerfile,cli,gateway,libs,services})
    [ -z "${parents[$1]:-}" ] || folders+=("$here/${parents[$1]}")
    find "${folders[@]}" -type f -not -path '*/__pycache__/*' -exec sha256sum {} + | sed "s# $here/# #; s# $project/# #" | sort | sha256sum | cut -c 1-16
}

is_current() {
    exists "$(tag_of "$1")" &&
        [ "$(docker image inspect --format "{{index .Config.Labels \"$source_label\"}}" "$(tag_of "$1")")" = "$(source_of "$1")" ]
}

check_tools() {
    docker info >/dev/null 2>&1 || die "no Docker engine answers" "run deploy/local/engine.sh first"
    docker buildx version >/dev/null 2>&1 || die "the buildx plugin is missing" "run deploy/local/engine.sh, which installs it"
}

# How this machine's apt gets out (proxies, clock checks). It is shown to the builds as a secret: a proxy's address may
# hold a password, and must not end in an image.
host_apt_conf() {
    command -v apt-config >/dev/null || return 0
    apt-config dump | grep -E '^Acquire::(https?::.*Proxy|Check-Valid-Until|Check-Date|Max-FutureTime)' || true
}

proxy_of() { sed -nE "s/^Acquire::$1::Proxy \"([^\"]+)\";/\1/p" "$work/host-apt.conf" | head -n 1; }

mirror_lines() {
    if [ -n "${TELAR_DEBIAN_MIRROR:-}" ]; then
        echo "main ${TELAR_DEBIAN_MIRROR%/} -"
    else
        "$here/../local/debian-mirror.sh"
    fi
}

unpack_base() {
    local root=$1 uri='' keyring='' arguments=(--variant=minbase --include=ca-certificates)
    [ "$(id -u)" -eq 0 ] || die "building the base image needs root: debootstrap makes a file system" "run: sudo $0"
    command -v debootstrap >/dev/null || die "debootstrap is missing" "run: apt-get install debootstrap"
    read -r _ uri keyring < <(grep '^main ' "$work/mirrors") || true
    [ -z "$keyring" ] || [ "$keyring" = - ] || arguments+=(--keyring="$keyring")
    http_proxy=$(proxy_of http) https_proxy=$(proxy_of https) \
        debootstrap "${arguments[@]}" "$suite" "$root" ${uri:+"$uri"} >"$work/base.log" 2>&1 ||
        die "debootstrap stopped: $(tail -n 1 "$work/base.log")" "whole log: $work/base.log"
}

write_sources() {
    local root=$1 kind uri release
    [ -s "$work/mirrors" ] || return 0 # debootstrap has written its own default
    while read -r kind uri _; do
        release=$suite-$kind
        [ "$kind" != main ] || release=$suite
        printf 'Types: deb\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\n' "$uri" "$release"
    done <"$work/mirrors" >"$root/etc/apt/sources.list.d/debian.sources"
    rm -f "$root/etc/apt/sources.list"
}

# Certificates the operator added to this machine are trusted in the images too: a mirror or a proxy may be signed by them.
trust_local_authorities() {
    local root=$1 authorities=(/usr/local/share/ca-certificates/*.crt)
    [ -e "${authorities[0]}" ] || return 0
    cp "${authorities[@]}" "$root/usr/local/share/ca-certificates/"
    chroot "$root" update-ca-certificates >>"$work/base.log" 2>&1
}

build_base() {
    local root started=$SECONDS
    if exists "$base"; then
        say "$base exists already"
        return
    fi
    say "building $base with debootstrap"
    root=$(mktemp -d "$work/base.XXXXXX")
    # shellcheck disable=SC2064 # the folder of now
    trap "rm -rf '$root'" EXIT
    unpack_base "$root"
    write_sources "$root"
    trust_local_authorities "$root"
    install -m 0644 "$here/base/dpkg.cfg" "$root/etc/dpkg/dpkg.cfg.d/telar"
    install -m 0644 "$here/base/apt.conf" "$root/etc/apt/apt.conf.d/50telar"
    install -m 0755 "$here/base/policy-rc.d" "$root/usr/sbin/policy-rc.d"
    tar -C "$root" --numeric-owner -c --exclude='./var/cache/apt/*' --exclude='./var/lib/apt/lists/*' \
        --exclude='./usr/share/man/*' --exclude='./usr/share/info/*' --exclude='./usr/share/locale/*' \
        --exclude='./usr/share/doc/*/changelog*' --exclude='./var/log/*' --exclude='./dev/*' . |
        docker import --change 'CMD ["/bin/bash"]' --change 'ENV LANG=C.UTF-8' \
            --change 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' - "$base" >/dev/null
    rm -rf "$root"
    trap - EXIT
    say "$base built in $((SECONDS - started)) s"
}

# The host's network, so that a proxy on this machine's loopback works too.
build_image() {
    local name=$1 started=$SECONDS log=$work/$1.log reason on=$base setting replaced arguments=()
    for setting in PIP_INDEX_URL GOPROXY; do
        [ -z "${!setting:-}" ] || arguments+=(--build-arg "$setting")
    done
    [ -z "${parents[$name]:-}" ] || on=$(tag_of "${parents[$name]}")
    local context=("$here/$name")
    # pip looks up certificates in a list of its own, where the operator's authorities are not.
    [ "$name" != telar ] || context=(--build-arg "RUNTIME=$base" --build-arg PIP_CERT=/etc/ssl/certs/ca-certificates.crt
        -f "$project/deploy/Dockerfile" "$project")
    arguments+=(--build-arg "BASE=$on" --label "$source_label=$(source_of "$name")")
    replaced=$(docker image inspect --format '{{.Id}}' "$(tag_of "$name")" 2>/dev/null || true)
    if ! docker buildx build --builder default --load --progress=plain --network=host --tag "$(tag_of "$name")" \
        "${arguments[@]}" --secret "id=apt,src=$work/host-apt.conf" "${context[@]}" >"$log" 2>&1; then
        # What a package or the build's own command complained of says more than the builder's summary.
        reason=$(grep -E '^#[0-9]+ [0-9.]+ (E: |.*[Ee]rror)' "$log" | tail -n 1 || true)
        echo "airgap: FAILED: $name: ${reason:-$(tail -n 1 "$log")}; whole log: $log" >&2
        return 1
    fi
    # The one before has no name any more; while a container still runs on it, it stays.
    [ -z "$replaced" ] || [ -n "$(docker image inspect --format '{{join .RepoTags ""}}' "$replaced")" ] ||
        docker image rm "$replaced" >/dev/null 2>&1 || true
    say "$(tag_of "$name") built in $((SECONDS - started)) s, $(size_of "$name")"
}

size_of() { docker image inspect --format '{{.Size}}' "$(tag_of "$1")" | awk '{ printf "%d MB", $1 / 1000000 }'; }

# The names given, "stacks" as what it stands for.
expand() {
    local name
    for name in "$@"; do
        if [ "$name" = stacks ]; then printf '%s\n' "${stack_names[@]}"; else echo "$name"; fi
    done
}

build_images() {
    local name failed=0 pids=()
    for name in "$@"; do
        [ "$name" != base ] || continue
        if is_current "$name"; then
            say "$(tag_of "$name") is there and current"
            continue
        fi
        say "building $(tag_of "$name")"
        build_image "$name" &
        pids+=($!)
        # Unpacking keeps one core busy: more builds at a time than cores would only queue.
        while [ "$(jobs -rp | wc -l)" -ge "$(nproc)" ]; do wait -n || failed=1; done
    done
    for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
    return "$failed"
}

main() {
    local name names=("$@")
    [ "${1:-}" != --list ] || { printf '%s\n' base "${!versions[@]}" | sort; return 0; }
    [ "$#" -gt 0 ] || names=("${default_names[@]}")
    mapfile -t names < <(expand "${names[@]}")
    for name in "${names[@]}"; do
        [ "$name" = base ] || [ -n "${versions[$name]:-}" ] || die "there is no image named $name" "build.sh --list names them"
    done
    check_tools
    mkdir -p "$work"
    (umask 077 && host_apt_conf >"$work/host-apt.conf")
    mirror_lines >"$work/mirrors"
    build_base_if_asked "${names[@]}"
    build_in_order "${names[@]}" || die "some images were not built" "see above"
}

# What others stand on comes first; it is renewed only when it is asked for by name itself.
build_in_order() {
    local name parent rest=()
    for name in "$@"; do
        parent=${parents[$name]:-}
        if [ -z "$parent" ] || [[ " $* " == *" $parent "* ]]; then continue; fi
        FORCE='' build_images "$parent" || return
    done
    for name in "$@"; do
        if [[ " ${parents[*]} " == *" $name "* ]]; then build_images "$name" || return; else rest+=("$name"); fi
    done
    build_images "${rest[@]}"
}

# FORCE renews the base only when it is asked for by name: it rarely changes and takes longest.
build_base_if_asked() {
    if [[ " $* " == *" base "* ]]; then
        build_base
    else
        FORCE='' build_base
    fi
}

main "$@"

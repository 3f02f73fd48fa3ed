#!/usr/bin/env bash
# Makes a working Docker engine with Compose v2 and buildx on Debian; run it as often as you like.
#
#   TELAR_ENGINE_DIR        where the engine's log and pid file go (default /var/lib/telar-engine)
#   TELAR_ENGINE_TIMEOUT_S  how long to wait for the engine to answer (default 60)
#
# The engine is Debian's docker.io. The Compose and buildx plugins are Debian 13's: older releases carry only Compose v1.
# They are fetched with an apt configuration of their own, from the mirror this machine already uses; the machine's
# package sources stay as they are.
# shellcheck disable=SC1091 # os-release is the machine's
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
engine_dir=${TELAR_ENGINE_DIR:-/var/lib/telar-engine}
timeout_s=${TELAR_ENGINE_TIMEOUT_S:-60}
plugin_suite=trixie
plugin_dir=/usr/local/lib/docker/cli-plugins

say() { echo "engine: $*"; }
die() {
    echo "engine: FAILED: $1" >&2
    shift
    for line in "$@"; do echo "engine:   $line" >&2; done
    exit 1
}

engine_answers() { [ -n "$(docker info --format '{{.ServerVersion}}' 2>/dev/null)" ]; }
plugin_answers() { docker "$1" version >/dev/null 2>&1; }

all_there() {
    command -v docker >/dev/null && engine_answers && plugin_answers compose && plugin_answers buildx
}

report() {
    say "engine $(docker info --format '{{.ServerVersion}} ({{.Driver}}, cgroup v{{.CgroupVersion}})') answers"
    say "compose $(docker compose version --short) and $(docker buildx version | cut -d' ' -f1,2) are installed"
}

require_debian_root() {
    [ "$(id -u)" -eq 0 ] || die "this needs root, to install packages and start the engine" "run: sudo $0"
    if ! (. /etc/os-release 2>/dev/null && [ "${ID:-}" = debian ]); then
        die "this is not Debian" "install Docker Engine and the Compose v2 and buildx plugins your system's way, then run $0 again:" \
            "it only checks when all is there"
    fi
}

install_engine() {
    if [ -x /usr/sbin/dockerd ] || command -v dockerd >/dev/null; then
        say "docker.io is installed already"
        return
    fi
    say "installing docker.io and iptables from this machine's package sources"
    export DEBIAN_FRONTEND=noninteractive
    local log=$engine_dir/apt.log
    apt-get update >"$log" 2>&1 || die "apt-get update failed: $(tail -n 1 "$log")" "whole log: $log"
    apt-get install -y --no-install-recommends docker.io iptables ca-certificates >>"$log" 2>&1 ||
        die "docker.io could not be installed: $(tail -n 1 "$log")" "whole log: $log"
    hash -r
    # From Debian 13 on the client is a package of its own.
    if ! command -v docker >/dev/null; then
        apt-get install -y --no-install-recommends docker-cli >>"$log" 2>&1 ||
            die "docker-cli could not be installed: $(tail -n 1 "$log")" "whole log: $log"
        hash -r
    fi
}

# Fetches the package $1 of the plugin suite and takes the CLI plugin of the same name out of it.
fetch_plugin() {
    local package=$1 apt=$engine_dir/apt deb
    say "fetching $package of Debian $plugin_suite"
    if ! (cd "$apt" && APT_CONFIG="$apt/apt.conf" apt-get download "$package") >>"$engine_dir/apt.log" 2>&1; then
        die "$package could not be fetched: $(tail -n 1 "$engine_dir/apt.log")" "whole log: $engine_dir/apt.log"
    fi
    deb=$(find "$apt" -maxdepth 1 -name "${package}_*.deb" | head -n 1)
    dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$apt" "./usr/libexec/docker/cli-plugins/$package"
    install -D -m 0755 "$apt/usr/libexec/docker/cli-plugins/$package" "$plugin_dir/$package"
}

# An apt of its own: state, cache and sources under $engine_dir/apt; proxies and the like still come from the system.
prepare_plugin_apt() {
    local apt=$engine_dir/apt uri keyring
    read -r _ uri keyring < <("$here/debian-mirror.sh" | grep '^main ') ||
        die "no Debian mirror is configured in this machine's apt sources" "add your mirror under /etc/apt/sources.list.d/ and run $0 again"
    rm -rf "$apt"
    mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
    {
        echo "Types: deb"
        echo "URIs: $uri"
        echo "Suites: $plugin_suite"
        echo "Components: main"
        echo "Targets: Packages"
        [ "$keyring" = - ] || echo "Signed-By: $keyring"
    } >"$apt/plugins.sources"
    cat >"$apt/apt.conf" <<EOF
Dir::State "$apt";
Dir::State::lists "$apt/lists";
Dir::State::status "/var/lib/dpkg/status";
Dir::Cache "$apt/cache";
Dir::Etc::sourcelist "$apt/plugins.sources";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
APT::Sandbox::User "root";
Acquire::Languages "none";
EOF
    if ! APT_CONFIG="$apt/apt.conf" apt-get update >"$engine_dir/apt.log" 2>&1 || grep -qE '^(W|E):.*(Failed|NO_PUBKEY)' "$engine_dir/apt.log"; then
        die "the $plugin_suite package list could not be fetched from this machine's mirror" \
            "$(grep -E '^(W|E|Err):?' "$engine_dir/apt.log" | head -n 1)" \
            "if a key is missing: apt-get install --only-upgrade debian-archive-keyring; whole log: $engine_dir/apt.log"
    fi
}

install_plugins() {
    local missing=() plugin
    for plugin in compose buildx; do plugin_answers "$plugin" || missing+=("docker-$plugin"); done
    [ "${#missing[@]}" -gt 0 ] || { say "the Compose and buildx plugins are installed already"; return 0; }
    prepare_plugin_apt
    for plugin in "${missing[@]}"; do fetch_plugin "$plugin"; done
    rm -rf "$engine_dir/apt"
    for plugin in compose buildx; do
        plugin_answers "$plugin" || die "the $plugin plugin does not run" "try: $plugin_dir/docker-$plugin version"
    done
}

# Some kernels speak only one of the two netfilter interfaces. The right one is put first on dockerd's own PATH:
# the system's alternatives stay as they are.
netfilter_path() {
    local flavour
    if iptables -w -t nat -S >/dev/null 2>&1; then
        echo "$PATH"
        return
    fi
    for flavour in nft legacy; do
        if "iptables-$flavour" -w -t nat -S >/dev/null 2>&1; then
            mkdir -p "$engine_dir/netfilter"
            for tool in iptables ip6tables; do
                ln -sf "$(command -v "$tool-$flavour")" "$engine_dir/netfilter/$tool"
            done
            say "this kernel needs iptables-$flavour: the engine gets it" >&2
            echo "$engine_dir/netfilter:$PATH"
            return
        fi
    done
    die "neither iptables-nft nor iptables-legacy can reach the kernel's nat table" \
        "in a container, start it privileged; on a host, load the modules: modprobe ip_tables iptable_nat nf_tables"
}

check_cgroups() {
    grep -q ' /sys/fs/cgroup' /proc/mounts || die "no cgroup file system is mounted" \
        "mount it: mount -t cgroup2 cgroup2 /sys/fs/cgroup (then run $0 again)"
    [ -w /sys/fs/cgroup ] || die "/sys/fs/cgroup is read-only" "in a container, start it privileged with its own cgroup namespace (--privileged --cgroupns=private)"
}

start_engine() {
    if engine_answers; then
        say "an engine answers already"
        return
    fi
    if [ -d /run/systemd/system ]; then
        say "starting docker.service"
        systemctl start docker || die "docker.service does not start" "see why: journalctl -u docker -n 50"
    else
        start_dockerd
    fi
    await_engine
    say "the engine answers"
}

start_dockerd() {
    local path pid_file=$engine_dir/dockerd.pid
    check_cgroups
    path=$(netfilter_path)
    if pidof dockerd >/dev/null; then
        say "dockerd is starting already"
        return
    fi
    # A pid file left by a crash may name a process that is something else by now, and dockerd would refuse to start, or
    # wait for a containerd that is not there.
    rm -f "$pid_file"
    pidof containerd >/dev/null || rm -f /run/docker/containerd/containerd.pid
    say "starting dockerd (log $engine_dir/dockerd.log, pid file $pid_file)"
    # setsid: the engine outlives this script and its terminal. 9>&-: it must not keep this script's lock.
    PATH=$path setsid nohup dockerd --pidfile "$pid_file" </dev/null >>"$engine_dir/dockerd.log" 2>&1 9>&- &
    dockerd_pid=$!
}

await_engine() {
    local deadline=$((SECONDS + timeout_s))
    until engine_answers; do
        if [ -n "${dockerd_pid:-}" ] && ! kill -0 "$dockerd_pid" 2>/dev/null; then
            explain_death
        fi
        [ "$SECONDS" -lt "$deadline" ] || die "the engine did not answer within $timeout_s s" "see $engine_dir/dockerd.log"
        sleep 0.2
    done
}

explain_death() {
    local reason hint="see $engine_dir/dockerd.log"
    reason=$(grep -E 'failed to start daemon|level=fatal|^failed' "$engine_dir/dockerd.log" | tail -n 1)
    case $reason in
        *cgroup*) hint="cgroups are not usable here: mount -t cgroup2 cgroup2 /sys/fs/cgroup, or in a container use --privileged" ;;
        *iptables* | *nat*) hint="netfilter is not usable here: in a container use --privileged; on a host: modprobe iptable_nat" ;;
        *overlay* | *graphdriver* | *"storage driver"*) hint="put /var/lib/docker on ext4 or xfs" ;;
        *pid\ file* | *"already running"*) hint="another dockerd is starting or stuck: find it with: pgrep -a dockerd" ;;
    esac
    die "dockerd stopped: ${reason:-no reason in its log}" "$hint"
}

main() {
    if all_there; then
        say "nothing to do"
        report
        return
    fi
    require_debian_root
    mkdir -p "$engine_dir"
    exec 9>"$engine_dir/lock"
    flock 9
    install_engine
    install_plugins
    start_engine
    report
}

main "$@"

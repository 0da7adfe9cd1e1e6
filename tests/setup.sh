#!/bin/sh
# Installs what building and testing need and this system lacks; silent where nothing is missing.
set -eu
# Where programs for root are, which others look up as well.
PATH=$PATH:/usr/sbin:/sbin

missing=
for pair in cc:gcc git:git node:nodejs npm:npm make:make setsid:util-linux ssh:openssh-client \
    mkfs.xfs:xfsprogs debootstrap:debootstrap systemd-nspawn:systemd-container; do
    command -v "${pair%%:*}" >/dev/null 2>&1 || missing="$missing ${pair#*:}"
done
# The tests' clusters run it by this path: the first python3 of PATH may be another one.
[ -x /usr/bin/python3 ] || missing="$missing python3"
# Outside of PATH for all but root.
[ -x /usr/sbin/sshd ] || missing="$missing openssh-server"
/usr/bin/python3 -c 'import ensurepip' 2>/dev/null || missing="$missing python3-venv"
[ -x /usr/sbin/nginx ] || missing="$missing nginx-light"
if ! command -v cargo >/dev/null 2>&1; then
    echo 'no cargo: install a Rust toolchain first' >&2
    exit 1
fi
if [ -n "$missing" ]; then
    if ! command -v apt-get >/dev/null 2>&1; then
        echo "missing:$missing; this is no Debian or Ubuntu, so install them by hand" >&2
        exit 1
    fi
    echo "installing by apt-get:$missing libc6-dev"
    sudo=
    [ "$(id -u)" = 0 ] || sudo=sudo
    $sudo apt-get update -q >/dev/null
    # shellcheck disable=SC2086  # a list of words
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -qy $missing libc6-dev >/dev/null
fi
major=$(node --version | sed 's/^v\([0-9]*\).*/\1/')
if [ "$major" -lt 18 ]; then
    echo "node $(node --version) is too old: the tests' app needs 18 or newer" >&2
    exit 1
fi

#!/usr/bin/env bash
# Make the base image of the test images from Debian packages alone: no registry is asked.
#
# Does nothing where the image is there already and this script has not changed since.
# Needs root, docker and debootstrap. DEBIAN_MIRROR chooses the mirror.
set -euo pipefail

image=mlbench-exec-test/base:bookworm
label=mlbench-exec.source
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
packages=bash,ca-certificates,git,procps,python3,python3-venv

source_hash=$(sha256sum "$0" | cut -d' ' -f1)
found=$(docker image inspect --format "{{index .Config.Labels \"$label\"}}" "$image" 2>/dev/null || true)
if [ "$found" = "$source_hash" ]; then
    echo "$image is up to date"
    exit 0
fi

folder=$(mktemp -d /var/tmp/mlbench-exec-base.XXXXXX)
trap 'rm -rf --one-file-system "$folder"' EXIT

echo "making $image from $mirror (a minute or two)"
if ! debootstrap --variant=minbase --include="$packages" bookworm "$folder/root" "$mirror" \
    >"$folder/log" 2>&1; then
    echo "debootstrap failed; its last lines:" >&2
    tail -n 20 "$folder/log" "$folder/root/debootstrap/debootstrap.log" >&2 2>/dev/null || true
    exit 1
fi
# What only the making needed, and what would differ from one making to the next.
rm -rf "$folder"/root/var/cache/apt/*.bin "$folder"/root/var/cache/apt/archives/*.deb \
    "$folder"/root/var/lib/apt/lists/* "$folder"/root/var/log/*.log \
    "$folder"/root/usr/share/{doc,info,locale,man}/*

tar -C "$folder/root" --numeric-owner -c . |
    docker import \
        --change 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
        --change 'ENV LANG=C.UTF-8' \
        --change 'CMD ["bash"]' \
        --change "LABEL $label=$source_hash" \
        - "$image" >/dev/null
echo "$image is made"

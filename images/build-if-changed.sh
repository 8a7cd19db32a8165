#!/usr/bin/env bash
# build-if-changed.sh NAME BASE: build mlbench-exec-test/NAME:latest from the folder NAME, without
# network, unless it was built from these very files on this very BASE.
#
# A prepare.sh in the folder puts into the build's context what can't be fetched inside; a smoke.py,
# which the image has in /opt, is run at the end.
set -euo pipefail
cd "$(dirname "$0")/$1"

image=mlbench-exec-test/$1:latest
base=$2
label=mlbench-exec.source

source_hash=$({
    docker image inspect --format '{{.Id}}' "$base"
    find . -type f -not -name '*.pyc' -print0 | LC_ALL=C sort -z | xargs -0 sha256sum
} | sha256sum | cut -d' ' -f1)
found=$(docker image inspect --format "{{index .Config.Labels \"$label\"}}" "$image" 2>/dev/null || true)
if [ "$found" = "$source_hash" ]; then
    echo "$image is up to date"
    exit 0
fi
context=$(mktemp -d /var/tmp/mlbench-exec-context.XXXXXX)
trap 'rm -rf "$context"' EXIT
cp -R . "$context"
[ ! -e prepare.sh ] || ./prepare.sh "$context"
docker build --quiet --network none --build-arg "BASE=$base" --label "$label=$source_hash" \
    --tag "$image" "$context" >/dev/null
[ ! -e smoke.py ] || docker run --rm --network none "$image" python /opt/smoke.py
echo "$image is made"

#!/usr/bin/env bash
# Build mlbench-exec-test/mlbench-shape:latest, unless it was built from these very files.
set -euo pipefail
cd "$(dirname "$0")"

image=mlbench-exec-test/mlbench-shape:latest
base=mlbench-exec-test/conformance:latest
label=mlbench-exec.source

../conformance/build.sh
source_hash=$({
    docker image inspect --format '{{.Id}}' "$base"
    find . -type f -not -name '*.pyc' -print0 | LC_ALL=C sort -z | xargs -0 sha256sum
} | sha256sum | cut -d' ' -f1)
found=$(docker image inspect --format "{{index .Config.Labels \"$label\"}}" "$image" 2>/dev/null || true)
if [ "$found" = "$source_hash" ]; then
    echo "$image is up to date"
    exit 0
fi
docker build --quiet --network none --build-arg "BASE=$base" --label "$label=$source_hash" \
    --tag "$image" . >/dev/null
echo "$image is made"

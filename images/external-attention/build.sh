#!/usr/bin/env bash
# Build mlbench-exec-test/external-attention:latest, unless it was built from these very files.
#
# prepare.sh fetches the wheels, and the image is built from them without network.
set -euo pipefail
cd "$(dirname "$0")"

image=mlbench-exec-test/external-attention:latest
base=mlbench-exec-test/base:bookworm
label=mlbench-exec.source

../bootstrap-base.sh
files=(Dockerfile install.sh requirements.txt requirements-alone.txt smoke.py
    torchvision_without_ops.py)
source_hash=$({
    docker image inspect --format '{{.Id}}' "$base"
    sha256sum build.sh prepare.sh "${files[@]}"
} | sha256sum | cut -d' ' -f1)
found=$(docker image inspect --format "{{index .Config.Labels \"$label\"}}" "$image" 2>/dev/null || true)
if [ "$found" = "$source_hash" ]; then
    echo "$image is up to date"
    exit 0
fi

context=$(mktemp -d /var/tmp/mlbench-exec-context.XXXXXX)
trap 'rm -rf "$context"' EXIT
cp "${files[@]}" "$context"
./prepare.sh "$context"
docker build --quiet --network none --build-arg "BASE=$base" --label "$label=$source_hash" \
    --tag "$image" "$context" >/dev/null
docker run --rm --network none "$image" python /opt/smoke.py
echo "$image is made"

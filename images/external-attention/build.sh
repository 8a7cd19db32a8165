#!/usr/bin/env bash
# Build mlbench-exec-test/external-attention:latest, unless it was built from these very files.
#
# The wheels are fetched here, by pip, and the image is built from them without network. $PYTHON
# must be of the same version as the image's (3.11). For torch without CUDA on a machine whose pip
# asks PyPI: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
set -euo pipefail
cd "$(dirname "$0")"

python=${PYTHON:-python3}
cache=${MLBENCH_WHEELS:-${XDG_CACHE_HOME:-$HOME/.cache}/mlbench-exec/external-attention}
image=mlbench-exec-test/external-attention:latest
base=mlbench-exec-test/base:bookworm
label=mlbench-exec.source

../bootstrap-base.sh
files=(Dockerfile install.sh requirements.txt requirements-alone.txt smoke.py
    torchvision_without_ops.py)
source_hash=$({
    docker image inspect --format '{{.Id}}' "$base"
    sha256sum build.sh "${files[@]}"
} | sha256sum | cut -d' ' -f1)
found=$(docker image inspect --format "{{index .Config.Labels \"$label\"}}" "$image" 2>/dev/null || true)
if [ "$found" = "$source_hash" ]; then
    echo "$image is up to date"
    exit 0
fi

version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
if [ "$version" != 3.11 ]; then
    echo "$python is Python $version, the image's is 3.11: set PYTHON to a Python 3.11" >&2
    exit 2
fi
wheels=$cache/$(cat requirements*.txt | sha256sum | cut -c-16)
if [ ! -e "$wheels/complete" ]; then
    echo "fetching wheels into $wheels"
    mkdir -p "$wheels"
    "$python" -m pip wheel --quiet --wheel-dir "$wheels" --requirement requirements.txt
    "$python" -m pip wheel --quiet --wheel-dir "$wheels" --no-deps \
        --requirement requirements-alone.txt
    touch "$wheels/complete"
fi

context=$(mktemp -d /var/tmp/mlbench-exec-context.XXXXXX)
trap 'rm -rf "$context"' EXIT
cp "${files[@]}" "$context"
mkdir "$context/wheels"
cp "$wheels"/*.whl "$context/wheels"
docker build --quiet --network none --build-arg "BASE=$base" --label "$label=$source_hash" \
    --tag "$image" "$context" >/dev/null
docker run --rm --network none "$image" python /opt/smoke.py
echo "$image is made"

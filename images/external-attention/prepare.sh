#!/usr/bin/env bash
# Fill the build's context, $1, with the wheels of the requirements: the image is built without network.
#
# $PYTHON must be of the same version as the image's (3.11). For torch without CUDA on a machine whose
# pip asks PyPI: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
set -euo pipefail
context=$(cd "$1" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")"

python=${PYTHON:-python3}
cache=${MLBENCH_WHEELS:-${XDG_CACHE_HOME:-$HOME/.cache}/mlbench-exec/external-attention}
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
mkdir -p "$context/wheels"
cp "$wheels"/*.whl "$context/wheels"

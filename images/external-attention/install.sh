#!/bin/sh
# Make the virtual environment $1 with what github_id 9 imports; what follows goes to pip.
# Serves the image (with --no-index) and machines that execute these rows without Docker.
set -eu
venv=$1
shift
here=$(cd "$(dirname "$0")" && pwd)
"${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/pip" install --quiet "$@" --requirement "$here/requirements.txt"
"$venv/bin/pip" install --quiet "$@" --no-deps --requirement "$here/requirements-alone.txt"
packages=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
cp "$here/torchvision_without_ops.py" "$packages"
echo 'import torchvision_without_ops' >"$packages/torchvision_without_ops.pth"

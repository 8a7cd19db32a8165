#!/usr/bin/env bash
# Build mlbench-exec-test/mlbench-shape:latest and its base, unless they are built already.
set -euo pipefail
cd "$(dirname "$0")"
../conformance/build.sh
../build-if-changed.sh mlbench-shape mlbench-exec-test/conformance:latest

#!/usr/bin/env bash
# Build mlbench-exec-test/conformance:latest and its base, unless they are built already.
set -euo pipefail
cd "$(dirname "$0")"
../bootstrap-base.sh
../build-if-changed.sh conformance mlbench-exec-test/base:bookworm

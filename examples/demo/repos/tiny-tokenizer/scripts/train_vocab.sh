#!/usr/bin/env bash
# Train a vocabulary, then encode a line with it. All options go to `cli.py train`.
set -euo pipefail
python ../cli.py train --out vocab.json "$@"
python ../cli.py encode --vocab vocab.json --text "the tide"

#!/bin/bash
# Train, however many epochs are asked for.
exec python train.py --epochs "${1:-1}"

#!/usr/bin/env bash
# The house rules, checked: dev/lint/lint.sh [FILE...]   (all files when none is named)
# Prints file:line for each finding; exit code 0: none, 1: some. The rules: lint.py, layers.py.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
exec python3 dev/lint/lint.py "$@"

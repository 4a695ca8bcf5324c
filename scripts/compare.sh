#!/usr/bin/env bash
# Compares runs; the first is the reference: scripts/compare.sh [--out DIR] [--smooth X] RUN RUN...
# Prints a table; writes one HTML page and PNG files. Exit codes: 2 usage, 3 bad log, 4 disk.
set -euo pipefail
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$top/build/venv/bin/python
[ -x "$python" ] && "$python" -c 'import numpy, matplotlib' 2>/dev/null || python=python3
exec "$python" "$top/dev/plot/compare.py" "$@"

#!/usr/bin/env bash
# Lists the shell scripts of the repository: by their first line, whatever their name.
set -euo pipefail
cd "$(dirname "$0")/../.."
{ git ls-files --cached --others --exclude-standard 2>/dev/null || find . -type f -not -path './target/*' -not -path './build/*'; } |
    while read -r file; do
        [ -f "$file" ] && head -c 200 "$file" | head -1 | tr -d '\0' | grep -qE '^#(!.*\b(ba)?sh\b| shellcheck shell=)' && echo "$file"
    done

#!/usr/bin/env bash
# Installs packages of uv.lock into a virtual environment. pip checks the hash of every file that it installs.
#   deploy/install.sh ENVIRONMENT OPTION...    (the options of `uv export`, such as --extra service)
#
# If pip finds the CPU build of torch, for example in the index that PIP_EXTRA_INDEX_URL names, this build is installed
# without packages for CUDA. Otherwise the build of PyPI is installed, with several gigabytes of packages for CUDA.
set -euo pipefail
bin=$(realpath "$1")/bin
shift
cd "$(dirname "$0")/.."
install=("$bin/python" -m pip install --disable-pip-version-check --no-deps)
locked=("${install[@]}" --require-hashes --no-build-isolation --progress-bar off --requirement)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# uv, which reads the lock, and setuptools, which builds what has no wheel, are packages of the lock themselves.
"$bin/python" - > "$work/first.txt" << 'END'
import tomllib

with open("uv.lock", "rb") as lock:
    packages = [each for each in tomllib.load(lock)["package"] if each["name"] in {"setuptools", "uv"}]
for package in packages:
    print(f"{package['name']}=={package['version']}", *(f"--hash={wheel['hash']}" for wheel in package["wheels"]))
END
echo "Installing uv and setuptools"
"${locked[@]}" "$work/first.txt" > /dev/null

"$bin/uv" export --quiet --color=never --frozen --no-emit-project "$@" > "$work/locked.txt"
cpu=$(grep -o '^torch==[^ ]*' torch-cpu.txt)
if grep -q '^torch==' "$work/locked.txt" && "${install[@]}" --quiet --dry-run "$cpu" 2> /dev/null; then
    # A package is a line that starts with its name, and indented lines with its hashes.
    awk '/^[a-z]/ { cuda = /^(torch|triton|nvidia-.*|cuda-.*)==/ } !cuda' "$work/locked.txt" > "$work/chosen.txt"
    cat torch-cpu.txt >> "$work/chosen.txt"
else
    mv "$work/locked.txt" "$work/chosen.txt"
fi
done=0 count=$(grep -c '^[a-z]' "$work/chosen.txt")
echo "Downloading and installing $count packages"
# pip names each package before it downloads it, and writes one line before it installs all.
"${locked[@]}" "$work/chosen.txt" | while read -r word _; do
    if [ "$word" = Collecting ] && ((++done % 10 == 0)); then
        echo "  $done of $count packages"
    elif [ "$word" = Installing ]; then
        echo "  installing them"
    fi
done

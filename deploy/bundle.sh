#!/bin/sh
# One file with all that a machine without a network needs: the images of the chosen profiles, this folder's files, the
# models. Each is checked by its SHA-256 before anything is loaded.
#   deploy/bundle.sh save|load FILE
set -eu
trap 'exit 130' HUP INT TERM # runs what is trapped at EXIT
verb=$1
file=$(realpath "$2")
mkdir -p "${SEFT_MODELS:=models}"
models=$(realpath "$SEFT_MODELS")

case $verb in
save)
    work=$(mktemp -d "$file.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    # shellcheck disable=SC2046 # a word for each image
    docker save --output "$work/images.tar" $(docker compose config --images | sort -u)
    tar --create --file "$work/files.tar" docker-compose.yml Makefile deploy docs
    tar --create --file "$work/models.tar" --directory "$models" .
    (cd "$work" && sha256sum ./*.tar > SHA256SUMS)
    tar --create --file "$file" --directory "$work" .
    ;;
load)
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    tar --extract --file "$file" --directory "$work"
    (cd "$work" && sha256sum --check --strict --quiet SHA256SUMS)
    tar --extract --file "$work/files.tar"
    tar --extract --file "$work/models.tar" --directory "$models"
    docker load --input "$work/images.tar"
    ;;
*)
    echo "save or load, and not '$verb'" >&2
    exit 2
    ;;
esac

#!/bin/sh
# One file with all that a machine without a network needs: the images of the chosen profiles, this folder's files, the
# models. Each is checked by its SHA-256 before anything is loaded.
#   deploy/bundle.sh save|load FILE
set -eu
trap 'exit 130' HUP INT TERM # runs what is trapped at EXIT
verb=$1
file=$(realpath "$2")
# The folder that Compose gives to workers, which knows best how to read .env; secrets are not needed for that.
models=$(SEFT_DATABASE_PASSWORD=- SEFT_BROKER_PASSWORD=- SEFT_S3_PASSWORD=- SEFT_GRAFANA_PASSWORD=- \
    docker compose --profile '*' config | awk '
    /source:/ { source = $0 }
    /target: \/var\/lib\/seft\/models$/ { gsub(/^ *source: |\047/, "", source); print source; exit }')
test -n "$models" || { echo "docker compose config names no folder of models: look at SEFT_MODELS" >&2 && exit 1; }

# One of its parts, which is never unpacked beside it: images take gigabytes, and /tmp may be memory.
part() { tar --extract --to-stdout --file "$file" "./$1"; }

case $verb in
save)
    test -d "$models" || { echo "there is no folder of models $models: make it, or set SEFT_MODELS" >&2 && exit 1; }
    images=$(docker compose config --images)
    for image in $images; do
        docker image inspect "$image" > /dev/null || { echo "build or pull $image first" >&2 && exit 1; }
    done
    work=$(mktemp -d "$file.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    # shellcheck disable=SC2086 # a word for each image
    docker save --output "$work/images.tar" $images
    tar --create --file "$work/files.tar" docker-compose.yml Makefile deploy docs
    tar --create --file "$work/models.tar" --directory "$models" .
    (cd "$work" && sha256sum ./*.tar > SHA256SUMS)
    tar --create --file "$file" --directory "$work" .
    ;;
load)
    mkdir -p "$models"
    for name in files models images; do
        sum=$(part "$name.tar" | sha256sum | cut -d ' ' -f 1)
        part SHA256SUMS | grep -Fqx "$sum  ./$name.tar" || { echo "./$name.tar: FAILED" >&2 && exit 1; }
    done
    part files.tar | tar --extract --file -
    part models.tar | tar --extract --file - --directory "$models"
    part images.tar | docker load
    ;;
*)
    echo "save or load, and not '$verb'" >&2
    exit 2
    ;;
esac

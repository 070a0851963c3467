#!/bin/sh
# Writes or loads one file with everything that an offline machine needs: the images of the chosen profiles, the files
# of this folder, and the models. Loading checks every SHA-256 first.
#   deploy/bundle.sh save|load FILE
set -eu
trap 'exit 130' HUP INT TERM # runs the EXIT trap
verb=$1
file=$(realpath "$2")
# The models folder, as Compose reads it from .env. This needs no secrets.
models=$(SEFT_DATABASE_PASSWORD=- SEFT_DATABASE_SERVICE_PASSWORD=- SEFT_BROKER_PASSWORD=- SEFT_S3_PASSWORD=- SEFT_GRAFANA_PASSWORD=- \
    docker compose --profile '*' config | awk '
    /source:/ { source = $0 }
    /target: \/var\/lib\/seft\/models$/ { gsub(/^ *source: |\047/, "", source); print source; exit }')
test -n "$models" || { echo "docker compose config shows no models folder: check SEFT_MODELS" >&2 && exit 1; }

# Prints one part of the bundle. It is never unpacked to disk: images take gigabytes, and /tmp may be in memory.
part() { tar --extract --to-stdout --file "$file" "./$1"; }

case $verb in
save)
    test -d "$models" || { echo "the models folder $models does not exist: create it, or set SEFT_MODELS" >&2 && exit 1; }
    # `docker load` restores tags but no digests. Compose would pull an image again if it knows only the digest. So
    # the images are saved with their tags, and the docker-compose.yml of the bundle names them only by tag. Loading
    # checks the SHA-256 of images.tar instead of the digests.
    images=$(docker compose config --images)
    tags=
    for image in $images; do
        docker image inspect "$image" > /dev/null || { echo "image $image is missing: build or pull it first" >&2 && exit 1; }
        docker tag "$image" "${image%@*}"
        tags="$tags ${image%@*}"
    done
    work=$(mktemp -d "$file.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    mkdir "$work/changed"
    sed 's/^\( *image: .*\)@sha256:[0-9a-f]*$/\1/' docker-compose.yml > "$work/changed/docker-compose.yml"
    # shellcheck disable=SC2086 # one word per image
    docker save --output "$work/images.tar" $tags
    tar --create --file "$work/files.tar" Makefile deploy docs --directory "$work/changed" docker-compose.yml
    rm -r "$work/changed"
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
    echo "the first argument must be save or load; it is '$verb'" >&2
    exit 2
    ;;
esac

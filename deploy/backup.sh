#!/bin/sh
# Writes database and bucket of docker-compose.yml's stack into a folder, or makes an empty stack of what is there.
#   deploy/backup.sh save|load FOLDER
# The bucket is saved before and after the database. A job whose state was made and replaced in between begins anew.
# COMPOSE, `docker compose` unless set, is how that stack is spoken to.
set -eu
umask 077
verb=$1
mkdir -p "$2"
folder=$(cd "$2" && pwd)

compose() { ${COMPOSE:-docker compose} "$@"; }

bucket() {
    compose run --rm --no-deps --user "$(id -u):$(id -g)" --volume "$folder:/backup" \
        api python -m api bucket "$1" /backup/bucket
}

case $verb in
save)
    bucket save
    compose exec --no-TTY postgres pg_dump --username=seft --format=custom seft > "$folder/database.new"
    mv "$folder/database.new" "$folder/database"
    bucket save
    ;;
load)
    # Into an empty database only: tables that are there are an error, and then nothing is changed.
    compose up --detach --wait postgres storage
    compose exec --no-TTY postgres pg_restore --username=seft --dbname=seft --single-transaction --exit-on-error \
        < "$folder/database"
    bucket load
    ;;
*)
    echo "save or load, and not '$verb'" >&2
    exit 2
    ;;
esac

#!/bin/sh
# Saves database and bucket of the docker-compose.yml stack to a folder, or loads them into an empty stack.
#   deploy/backup.sh save|load FOLDER
# It saves the bucket before and after the database.
# A job whose state was replaced in between starts again from the beginning.
# COMPOSE is the command that controls the stack; the default is `docker compose`.
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
    # Other users could read the files that the container writes, so only the owner can open this folder.
    mkdir -p "$folder/bucket"
    chmod 700 "$folder/bucket"
    bucket save
    compose exec --no-TTY postgres pg_dump --username=seft --format=custom seft > "$folder/database.new"
    bucket save
    # The folder has all objects of the new dump now. If a step before this fails, the old dump stays.
    mv "$folder/database.new" "$folder/database"
    ;;
load)
    # The database must be empty: if it has tables, this fails and changes nothing. The role of the service, which
    # has rights in the dump, does not exist yet: the next migration creates it and grants them.
    compose up --detach --wait postgres storage
    compose exec --no-TTY postgres pg_restore --username=seft --dbname=seft --single-transaction --exit-on-error \
        --no-privileges \
        < "$folder/database"
    bucket load
    ;;
*)
    echo "the first argument must be save or load; it is '$verb'" >&2
    exit 2
    ;;
esac

#!/bin/sh
# Prepares the database that PostgreSQL's image creates (POSTGRES_DB), once, when its volume is empty: pgvector, and a
# role for Mayfly that owns one schema and may do nothing else. Mayfly itself creates its tables there.
# CORPORA_PASSWORD: the password of that role.
set -eu
psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" <<'SQL'
\getenv password CORPORA_PASSWORD
CREATE ROLE mayfly LOGIN PASSWORD :'password';
CREATE EXTENSION vector;
CREATE SCHEMA mayfly AUTHORIZATION mayfly;
SQL

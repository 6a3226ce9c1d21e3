"""Schema: the tables of all corpora in one PostgreSQL database, and how earlier versions become it.

Except for uploaded files, API keys and their rates, each row belongs to a corpus, and every query
names it. Ids of documents and sequences are counted for each corpus in its row of `corpora`, which
a transaction that changes the corpus locks first: ids become visible in ascending order, as readers
that catch up by the last id rely on.

Embeddings are apart from texts, so that reading all of them reads little else. A document is looked
up by the digest of its name, which is what the index of names contains.
"""

from __future__ import annotations

SCHEMA = "mayfly"

_FIRST = """
CREATE TABLE corpora (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text COLLATE "C" NOT NULL UNIQUE,
    meta jsonb NOT NULL DEFAULT '{}',
    generation bigint NOT NULL DEFAULT 0,
    bytes bigint NOT NULL DEFAULT 0,
    last_document bigint NOT NULL DEFAULT 0,
    last_sequence bigint NOT NULL DEFAULT 0,
    last_attachment bigint NOT NULL DEFAULT 0,
    last_batch_file bigint NOT NULL DEFAULT 0);
CREATE TABLE attachments (
    corpus bigint NOT NULL REFERENCES corpora ON DELETE CASCADE,
    id text NOT NULL, number bigint NOT NULL, attached bigint NOT NULL,
    name text NOT NULL, attributes text NOT NULL, max_length integer, overlap integer, batch text,
    status text NOT NULL, code text, message text,
    PRIMARY KEY (corpus, id));
CREATE INDEX attachments_in_progress ON attachments (corpus) WHERE status = 'in_progress';
CREATE TABLE detached (
    corpus bigint NOT NULL REFERENCES corpora ON DELETE CASCADE,
    kind integer NOT NULL, number bigint NOT NULL, added bigint NOT NULL, id text NOT NULL,
    PRIMARY KEY (corpus, kind, number));
CREATE INDEX detached_by_id ON detached (corpus, id);
CREATE TABLE batches (
    corpus bigint NOT NULL REFERENCES corpora ON DELETE CASCADE,
    id text NOT NULL, cancelled boolean NOT NULL DEFAULT false,
    created bigint NOT NULL DEFAULT floor(extract(epoch FROM clock_timestamp()))::bigint,
    PRIMARY KEY (corpus, id));
CREATE TABLE batch_files (
    corpus bigint NOT NULL, number bigint NOT NULL, batch text NOT NULL, file text NOT NULL,
    name text NOT NULL, attributes text NOT NULL, max_length integer, overlap integer,
    status text NOT NULL, code text, message text,
    PRIMARY KEY (corpus, number), UNIQUE (corpus, batch, file),
    FOREIGN KEY (corpus, batch) REFERENCES batches ON DELETE CASCADE);
CREATE INDEX batch_files_by_file ON batch_files (corpus, file);
CREATE TABLE documents (
    corpus bigint NOT NULL REFERENCES corpora ON DELETE CASCADE,
    id bigint NOT NULL, name text COLLATE "C" NOT NULL, sha256 text NOT NULL,
    metadata text NOT NULL, fields jsonb NOT NULL, file text,
    added bigint NOT NULL DEFAULT floor(extract(epoch FROM clock_timestamp()))::bigint,
    PRIMARY KEY (corpus, id), UNIQUE (corpus, name),
    FOREIGN KEY (corpus, file) REFERENCES attachments);
CREATE INDEX documents_by_file ON documents (corpus, file);
CREATE INDEX documents_by_field ON documents USING gin (fields jsonb_path_ops);
CREATE TABLE sequences (
    corpus bigint NOT NULL, id bigint NOT NULL, document bigint NOT NULL, start integer NOT NULL,
    text text NOT NULL, tokens bytea NOT NULL, example text, scored text,
    PRIMARY KEY (corpus, id),
    FOREIGN KEY (corpus, document) REFERENCES documents ON DELETE CASCADE);
CREATE INDEX sequences_by_document ON sequences (corpus, document, id);
CREATE TABLE embeddings (
    corpus bigint NOT NULL, sequence bigint NOT NULL, embedding vector NOT NULL,
    PRIMARY KEY (corpus, sequence),
    FOREIGN KEY (corpus, sequence) REFERENCES sequences ON DELETE CASCADE
) WITH (toast_tuple_target = 8160);
CREATE TABLE removed (
    corpus bigint NOT NULL REFERENCES corpora ON DELETE CASCADE,
    sequence bigint NOT NULL, generation bigint NOT NULL,
    PRIMARY KEY (corpus, sequence));
CREATE INDEX removed_by_generation ON removed (corpus, generation);
CREATE TABLE reembedded (
    corpus bigint NOT NULL REFERENCES corpora ON DELETE CASCADE,
    sequence bigint NOT NULL, embedding vector NOT NULL,
    PRIMARY KEY (corpus, sequence));
CREATE TABLE adapter_manifests (
    corpus bigint NOT NULL REFERENCES corpora ON DELETE CASCADE,
    kind text NOT NULL, version bigint GENERATED ALWAYS AS IDENTITY, body text NOT NULL,
    PRIMARY KEY (corpus, kind));
CREATE TABLE adapter_files (
    corpus bigint NOT NULL REFERENCES corpora ON DELETE CASCADE,
    name text NOT NULL, number integer NOT NULL, content bytea NOT NULL,
    PRIMARY KEY (corpus, name, number));
ALTER TABLE adapter_files ALTER COLUMN content SET STORAGE EXTERNAL;
CREATE TABLE files (
    id text PRIMARY KEY, name text NOT NULL, bytes bigint NOT NULL, purpose text NOT NULL,
    created double precision NOT NULL, owner text, content bytea NOT NULL);
ALTER TABLE files ALTER COLUMN content SET STORAGE EXTERNAL;
CREATE TABLE ingest_queue (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    corpus bigint NOT NULL, file text NOT NULL);
CREATE INDEX ingest_queue_by_file ON ingest_queue (corpus, file);
CREATE UNLOGGED TABLE request_rates (
    key text PRIMARY KEY, allowance double precision NOT NULL, computed timestamptz NOT NULL);
"""
# Keys may exchange their secrets in one transaction. The row of `api_keys_required` stays when all
# keys are removed: a server that starts then must not become open.
_API_KEYS = """
CREATE TABLE api_keys (
    name text COLLATE "C" PRIMARY KEY,
    sha256 text NOT NULL CHECK (sha256 ~ '^[0-9a-f]{64}$'),
    entries jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(entries) = 'object'),
    UNIQUE (sha256) DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE api_keys_required (required boolean PRIMARY KEY CHECK (required));
"""
# An entry of an index has at most 2704 bytes, and a name may be longer. The digest is immutable,
# unlike `convert_to`, because the encoding of the database is always UTF-8.
_LONG_NAMES = """
CREATE FUNCTION name_digest(name text) RETURNS bytea
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE RETURN sha256(convert_to(name, 'UTF8'));
CREATE UNIQUE INDEX documents_by_name ON documents (corpus, name_digest(name));
ALTER TABLE documents DROP CONSTRAINT documents_corpus_name_key;
"""
# What makes each version of the one before it.
MIGRATIONS = (_FIRST, _API_KEYS, _LONG_NAMES)
VERSION = len(MIGRATIONS)
# The tables of a corpus, those that refer to others first.
CORPUS_TABLES = (
    "adapter_files",
    "adapter_manifests",
    "embeddings",
    "reembedded",
    "removed",
    "sequences",
    "documents",
    "batch_files",
    "batches",
    "detached",
    "attachments",
)

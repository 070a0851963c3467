"""Fills a database with many jobs: copies, made by SQL, of one job that the service created.

This takes minutes; creating them through the service would take a day. All jobs belong to one tenant, which is the
worst case for its lists, and are created 30 seconds apart. Of every hundred jobs, one has metrics of `STEPS` steps, one
is queued, and eight have failed. Only the first copy has its own model name and metadata, so a filter finds one job.
"""

import json

import psycopg

STEPS = 1000
RARE = "tests/rare"

JOBS = """
INSERT INTO jobs (id, tenant, dataset_id, spec, spec_version, priority, status, progress, step, attempt, worker, scores,
                  measured, created_at, started_at, finished_at, updated_at)
SELECT 'job_00' || lpad(n::text, 24, '0'), tenant, dataset_id,
       CASE n WHEN 1 THEN spec || %(rare)s::jsonb ELSE spec END, spec_version, priority, status, progress, 500, 1,
       'gpu-1', '{"dense": 20.6, "pruned": 90.2, "repaired": 30.9}', %(measured)s::jsonb,
       made, made + '1 min'::interval, CASE WHEN status = 'queued' THEN NULL ELSE made + '29 min'::interval END, made
FROM (SELECT tenant, dataset_id, spec, spec_version, priority, 1.0 AS progress, n,
             now() - (%(jobs)s - n) * '30 s'::interval AS made,
             CASE WHEN n %% 100 = 50 THEN 'queued' WHEN n %% 100 > 91 THEN 'failed' ELSE 'succeeded' END AS status
      FROM jobs, generate_series(1, %(jobs)s) AS n WHERE id = %(like)s) AS made
"""
EVENTS = """
INSERT INTO job_events (job_id, attempt, type, data, created_at)
SELECT id, 1, type, '{}', created_at + place * '10 min'::interval
FROM jobs, unnest(ARRAY['job.created', 'job.claimed', 'job.succeeded']) WITH ORDINALITY AS event (type, place)
"""
LABELS = """
INSERT INTO job_labels (tenant, pair, job_id)
SELECT tenant, encode(sha256(convert_to(key, 'UTF8') || '\\x00'::bytea || convert_to(value, 'UTF8')), 'hex'), id
FROM jobs, jsonb_each_text(spec -> 'metadata')
ON CONFLICT DO NOTHING
"""
METRICS = """
INSERT INTO job_metrics (job_id, step, attempt, values)
SELECT 'job_00' || lpad(n::text, 24, '0'), step, 1,
       jsonb_build_object('loss', 3 + 1.0 / step, 'learning_rate', 0.003, 'tokens_per_second', 1e3, 'memory', step)
FROM generate_series(100, %(jobs)s, 100) AS n, generate_series(1, %(steps)s) AS step
"""


def fill(url: str, like: str, jobs: int) -> str:
    """Write `jobs` copies of the job with the id `like` into the database at `url`.

    Returns the id of the newest copy, which has metrics.
    """
    values = {
        "jobs": jobs,
        "like": like,
        "steps": STEPS,
        "measured": json.dumps({part: {"zeros": 6, "weights": 10, "share": 0.6} for part in ("linears", "model")}),
        "rare": f'{{"model": "{RARE}", "metadata": {{"case": "rare"}}}}',
    }
    with psycopg.connect(url, autocommit=True) as connection:
        # Skip the checks of foreign keys: the statements write only valid rows.
        connection.execute("SET session_replication_role = replica")
        connection.execute("SET synchronous_commit = off")
        for statement in (JOBS, LABELS, EVENTS, METRICS):
            connection.execute(statement, values)
        connection.execute("VACUUM ANALYZE")
    return f"job_00{jobs:024d}"

-- AZ-20, first contact: source, port and destination of an hour, unless that destination is the only one that the source reached on
-- the port in the seven days before. One other destination is enough to be reported: detection.md 2.1, quirk 6.
WITH hours AS (
    SELECT DISTINCT src, dport, dst, at - at % 3600000000 AS bin FROM rows WHERE src IS NOT NULL AND dst IS NOT NULL
),
learnt AS (
    SELECT
        *,
        min(dst) OVER (PARTITION BY src, dport ORDER BY bin RANGE BETWEEN 604800000000 PRECEDING AND 3600000000 PRECEDING) AS least,
        max(dst) OVER (PARTITION BY src, dport ORDER BY bin RANGE BETWEEN 604800000000 PRECEDING AND 3600000000 PRECEDING) AS most
    FROM hours
)
SELECT src, dst, dport, bin, 1 AS value FROM learnt WHERE least IS NULL OR least <> dst OR most <> dst

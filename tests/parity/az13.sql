-- AZ-13, SMB anomaly: rows of a private source to port 139 or 445 in a day, against those of the 13 days before in sum, not in the
-- mean: off by more than half. Both must be there.
WITH days AS (
    SELECT src, dport, at - at % 86400000000 AS bin, count(*) AS n
    FROM rows
    WHERE src_private AND dport IN (139, 445) AND src <> dst
    GROUP BY src, dport, bin
),
compared AS (
    SELECT
        *,
        sum(n) OVER (
            PARTITION BY src, dport ORDER BY bin
            RANGE BETWEEN 1123200000000 PRECEDING AND 86400000000 PRECEDING
        ) AS base
    FROM days
)
SELECT src, dport, bin, abs(n - base) / CAST(base AS DOUBLE) AS value FROM compared WHERE abs(n - base) / CAST(base AS DOUBLE) > 0.5

-- AZ-21, uncommon port: source and port of a day, web apart, that were not seen together in the seven days before.
WITH days AS (
    SELECT DISTINCT src, dport, at - at % 86400000000 AS bin FROM rows WHERE src IS NOT NULL AND dport NOT IN (80, 443)
),
learnt AS (
    SELECT *, lag(bin) OVER (PARTITION BY src, dport ORDER BY bin) AS last FROM days
)
SELECT src, dport, bin, 1 AS value FROM learnt WHERE last IS NULL OR last < bin - 604800000000

-- AZ-04, fan-out: distinct destinations per source and five minutes, for the five sources with most destinations overall.
-- KQL leaves open which of equal sources comes first.
WITH pairs AS (
    SELECT src, dst, at FROM rows WHERE src IS NOT NULL AND dst IS NOT NULL
),
widest AS (
    SELECT src FROM pairs GROUP BY src ORDER BY count(DISTINCT dst) DESC, src LIMIT 5
)
SELECT src, at - at % 300000000 AS bin, count(DISTINCT dst) AS value
FROM pairs
WHERE src IN (SELECT src FROM widest)
GROUP BY src, bin

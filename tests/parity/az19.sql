-- AZ-19, one source and many destinations: the destinations of a source and a destination, which is always one, above
-- max(mean + 3 deviations, 10). The public rule cannot fire: detection.md 2.1, quirk 6.
WITH hours AS (
    SELECT src, dst, at - at % 3600000000 AS bin, count(DISTINCT dst) AS n FROM rows GROUP BY src, dst, bin
)
SELECT src, bin, n AS value FROM hours WHERE n > 10

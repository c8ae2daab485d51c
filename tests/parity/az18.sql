-- AZ-18, abnormal deny rate: denials of a source in an hour above max(mean + 3 deviations, 5) of the hours with denials among the 23 before it,
-- of which there must be 6.
WITH counts AS (
    SELECT src, at - at % 3600000000 AS bin, count(*) AS n FROM rows WHERE action = 'Deny' GROUP BY src, bin
),
learned AS (
    SELECT now.src, now.bin, now.n, count(*) AS hours, avg(past.n) AS mean, stddev(past.n) AS deviation
    FROM counts AS now JOIN counts AS past ON now.src = past.src AND past.bin < now.bin AND past.bin >= now.bin - 23 * 3600000000
    GROUP BY now.src, now.bin, now.n
)
SELECT src, bin, n AS value FROM learned WHERE hours >= 6 AND n > greatest(mean + 3 * deviation, 5)

-- AZ-18, abnormal deny rate: the denials of a source in an hour, above max(mean + 3 deviations, 5) of the hours with denials among the 24
-- before it, of which there must be 6. Learnt for each destination, counted over all: one row for each destination learnt.
WITH learnt_from AS (
    SELECT src, dst, at - at % 3600000000 AS bin, count(*) AS n
    FROM rows
    WHERE action = 'Deny' AND src IS NOT NULL AND dst IS NOT NULL
    GROUP BY src, dst, bin
),
counted AS (
    SELECT src, bin, sum(n) AS n FROM learnt_from GROUP BY src, bin
),
learnt AS (
    SELECT counted.src AS src, past.dst AS dst, counted.bin AS bin, counted.n AS n, count(*) AS hours, avg(past.n) AS mean, stddev(past.n) AS deviation
    FROM counted
    JOIN learnt_from AS past
        ON counted.src = past.src AND past.bin < counted.bin AND past.bin >= counted.bin - 86400000000
    GROUP BY counted.src, past.dst, counted.bin, counted.n
)
SELECT src, dst, bin, n AS value FROM learnt WHERE hours >= 6 AND n > greatest(mean + 3 * deviation, 5)

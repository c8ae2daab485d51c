-- AZ-11, beaconing: the time to the source's next connection, to whatever destination, is the same to the second in more than 80 %
-- of more than 15 cases in an hour. Times of 10 s and less do not count. Days are looked at one by one.
WITH contacts AS (
    SELECT
        src, dst, dport, at,
        lead(at) OVER (PARTITION BY src, at / 86400000000 ORDER BY at, dst, dport) / 1000000 - at / 1000000 AS gap
    FROM rows
    WHERE dst_private = false AND NOT starts_with(dst, '169.254.') AND NOT starts_with(dst, '127.')
),
gaps AS (
    SELECT src, dst, dport, at - at % 3600000000 AS bin, gap, count(*) AS n
    FROM contacts
    WHERE gap > 10
    GROUP BY src, dst, dport, bin, gap
),
modes AS (
    SELECT
        *,
        sum(n) OVER (PARTITION BY src, dst, dport, bin) AS events,
        row_number() OVER (PARTITION BY src, dst, dport, bin ORDER BY n DESC, gap DESC) AS place
    FROM gaps
)
SELECT src, dst, dport, bin, 100.0 * n / events AS value
FROM modes
WHERE place = 1 AND events > 15 AND n > 0 AND 100.0 * n / events > 80

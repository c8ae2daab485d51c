-- AZ-25, unusual use of a common port: events, bytes or distinct sources of a day above the mean + 3 deviations of the days with rows
-- among the seven before it, of which there must be two.
WITH days AS (
    SELECT
        dport, at - at % 86400000000 AS bin,
        CAST(count(*) AS DOUBLE) AS events, CAST(sum(bytes_ab + bytes_ba) AS DOUBLE) AS bytes, CAST(count(DISTINCT src) AS DOUBLE) AS sources
    FROM rows
    WHERE dport IN (22, 53, 80, 443, 8080, 8888)
    GROUP BY dport, bin
),
measures AS (
    SELECT dport, bin, 'events' AS facet, events AS value FROM days
    UNION ALL
    SELECT dport, bin, 'bytes' AS facet, bytes AS value FROM days
    UNION ALL
    SELECT dport, bin, 'sources' AS facet, sources AS value FROM days
),
learnt AS (
    SELECT now.dport AS dport, now.facet AS facet, now.bin AS bin, now.value AS value, avg(past.value) AS mean, stddev(past.value) AS deviation
    FROM measures AS now
    JOIN measures AS past
        ON now.dport = past.dport AND now.facet = past.facet AND past.bin < now.bin AND past.bin >= now.bin - 604800000000
    GROUP BY now.dport, now.facet, now.bin, now.value
    HAVING count(*) >= 2
)
SELECT dport, facet, bin, value FROM learnt WHERE value > mean + 3 * deviation

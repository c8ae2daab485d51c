-- AZ-26, a ranking: the standard deviation of flows and of bytes, row by row, of every address at either end, over all data.
WITH ends AS (
    SELECT src, events, bytes_ab + bytes_ba AS bytes FROM rows WHERE src IS NOT NULL
    UNION ALL
    SELECT dst AS src, events, bytes_ab + bytes_ba AS bytes FROM rows WHERE dst IS NOT NULL AND src IS DISTINCT FROM dst
),
varied AS (
    SELECT src, 'flows' AS facet, stddev(events) AS value FROM ends GROUP BY src
    UNION ALL
    SELECT src, 'bytes' AS facet, stddev(bytes) AS value FROM ends GROUP BY src
)
SELECT src, facet, (SELECT min(at - at % 86400000000) FROM rows) AS bin, value FROM varied WHERE value > 0

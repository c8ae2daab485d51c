-- AZ-22, several denies: every source, destination and protocol that was denied in an hour in which more than one such triple was.
WITH denied AS (
    SELECT src, dst, proto, at - at % 3600000000 AS bin, count(*) AS value
    FROM rows
    WHERE action = 'Deny'
    GROUP BY src, dst, proto, bin
)
SELECT src, dst, proto, bin, value FROM (SELECT *, count(*) OVER (PARTITION BY bin) AS triples FROM denied) WHERE triples > 1

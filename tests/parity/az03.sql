-- AZ-03, bandwidth deviation: how far the volume of five minutes lies from the mean of all five minutes in which the same machine
-- used the same service, in units of that mean; the largest for each pair, where it first occurs.
WITH volumes AS (
    SELECT vm, proto, dport, at - at % 300000000 AS bin, sum(bytes_ab + bytes_ba) AS volume
    FROM rows
    WHERE vm <> ''
    GROUP BY vm, proto, dport, bin
),
means AS (
    SELECT vm, proto, dport, avg(volume) AS mean FROM volumes GROUP BY vm, proto, dport
),
deviations AS (
    SELECT vm, proto, dport, bin, round(abs(volume - mean) / mean, 2) AS deviation
    FROM volumes JOIN means USING (vm, proto, dport)
    WHERE mean > 0
),
ranked AS (
    SELECT *, row_number() OVER (PARTITION BY vm, proto, dport ORDER BY deviation DESC, bin) AS place FROM deviations
)
SELECT vm, concat(proto, dport) AS service, bin, deviation AS value FROM ranked WHERE place = 1 AND deviation > 0

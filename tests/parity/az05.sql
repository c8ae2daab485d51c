-- AZ-05, port scan: more than 50 ports from one public IPv4 source in five minutes, whatever the destinations.
SELECT src, at - at % 300000000 AS bin, count(DISTINCT dport) AS value
FROM rows
WHERE src_private = false AND src <> '127.0.0.1'
GROUP BY src, bin
HAVING count(DISTINCT dport) > 50

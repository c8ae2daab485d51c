-- AZ-16, port scan of one host: more than 100 ports from one source in half a minute.
SELECT src, dst, at - at % 30000000 AS bin, count(DISTINCT dport) AS value
FROM rows
GROUP BY src, dst, bin
HAVING count(DISTINCT dport) > 100

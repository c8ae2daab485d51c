-- AZ-17, port sweep: one source reaches one port, web apart, on more than 200 hosts in half a minute.
SELECT src, dport, at - at % 30000000 AS bin, count(DISTINCT dst) AS value
FROM rows
WHERE dport NOT IN (80, 443)
GROUP BY src, dport, bin
HAVING count(DISTINCT dst) > 200

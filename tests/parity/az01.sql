-- AZ-01, horizontal scan: more than 6 hosts from one source in a minute, TCP below port 10000, private to private.
SELECT src, at - at % 60000000 AS bin, count(DISTINCT dst) AS value
FROM rows
WHERE protocol = 6 AND dport < 10000 AND src_private AND dst_private
GROUP BY src, bin
HAVING count(DISTINCT dst) > 6

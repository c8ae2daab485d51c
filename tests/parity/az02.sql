-- AZ-02, vertical scan: more than 3 ports from one source on one host in a minute, TCP below port 10000, private to private.
SELECT src, dst, at - at % 60000000 AS bin, count(DISTINCT dport) AS value
FROM rows
WHERE protocol = 6 AND dport < 10000 AND src_private AND dst_private
GROUP BY src, dst, bin
HAVING count(DISTINCT dport) > 3

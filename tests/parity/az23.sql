-- AZ-23, anomalous scanning: a source tries at least 600 ports, common ones apart, from at least 600 of its own in an hour, a new one for
-- each, between private and public. What is denied does not count.
SELECT src, at - at % 3600000000 AS bin, count(DISTINCT dport) AS value
FROM rows
WHERE action <> 'Deny' AND src_private <> dst_private AND dport NOT IN (53, 67, 80, 123, 137, 138, 443, 445, 3389, 8080)
GROUP BY src, bin
HAVING count(DISTINCT dport) >= 600
    AND count(DISTINCT nullif(sport, 0)) >= 600
    AND count(DISTINCT dport) >= 0.9999 * count(DISTINCT nullif(sport, 0))

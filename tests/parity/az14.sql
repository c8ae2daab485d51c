-- AZ-14, RDP brute force: at least 25 failures of a public source on port 3389 in five minutes that no policy caused. A cloud's log
-- knows no other failure than a denial, so there is nothing to find: detection.md 2.1, quirk 7.
SELECT src, dport, at - at % 300000000 AS bin, sum(events) AS value
FROM rows
WHERE dport = 3389 AND src_private = false AND action = 'Deny' AND action NOT IN ('Deny', 'Drop')
GROUP BY src, dport, bin
HAVING sum(events) >= 25

-- AZ-06, port sweep: one port reached inbound on more than 20 hosts in an hour. The set of hosts stops at 100.
SELECT dport, at - at % 3600000000 AS bin, least(count(DISTINCT dst), 100) AS value
FROM rows
WHERE dir = 'Inbound'
GROUP BY dport, bin
HAVING count(DISTINCT dst) > 20

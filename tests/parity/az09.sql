-- AZ-09, port misuse, static rows of the watch list: more than 1000 of one port, protocol, direction and action in ten minutes.
SELECT dport, proto, concat(way, ' ', action) AS facet, at - at % 600000000 AS bin, count(*) AS value
FROM rows
WHERE dport IN (139, 445, 9150, 9151)
GROUP BY dport, proto, facet, bin
HAVING count(*) > 1000

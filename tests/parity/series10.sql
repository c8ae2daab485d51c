-- For AZ-10 of each watched port, by protocol, direction and action.
SELECT dport, proto, concat(way, ' ', action) AS facet, at - at % 86400000000 AS bin, count(*) AS value
FROM rows
WHERE dport IN (389, 636, 3389)
GROUP BY dport, proto, facet, bin

-- AZ-08 and AZ-10 begin with daily counts: for AZ-08 of everything, and by action, direction and protocol.
WITH facets AS (
    SELECT at, 'all' AS facet FROM rows
    UNION ALL
    SELECT at, concat('action ', action) AS facet FROM rows
    UNION ALL
    SELECT at, concat('dir ', way) AS facet FROM rows
    UNION ALL
    SELECT at, concat('proto ', proto) AS facet FROM rows
)
SELECT facet, at - at % 86400000000 AS bin, count(*) AS value FROM facets GROUP BY facet, bin

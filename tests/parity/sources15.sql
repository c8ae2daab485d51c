-- And ends with who sent them: megabytes by source, for those above the floor.
SELECT observer, src, at - at % 3600000000 AS bin, sum(bytes_ab) / 1e6 AS value
FROM rows
WHERE dst_private = false AND NOT starts_with(dst, '127.')
GROUP BY observer, src, bin
HAVING sum(bytes_ab) > 10000000

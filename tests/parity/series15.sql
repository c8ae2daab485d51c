-- AZ-15 begins with the hourly bytes of each observer to public addresses.
SELECT observer, at - at % 3600000000 AS bin, sum(bytes_ab) AS value
FROM rows
WHERE dst_private = false AND NOT starts_with(dst, '127.')
GROUP BY observer, bin

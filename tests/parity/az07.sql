-- AZ-07, excessive failures: more than 5000 from one source in five minutes. In a cloud's log a failure is a denial.
SELECT src, at - at % 300000000 AS bin, count(*) AS value
FROM rows
WHERE action = 'Deny' AND src IS NOT NULL
GROUP BY src, bin
HAVING count(*) > 5000

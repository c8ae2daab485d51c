-- AZ-24, known bad address: contacts that Traffic Analytics itself calls malicious; there is no indicator set as shipped.
SELECT src, dst, at - at % 3600000000 AS bin, count(*) AS value FROM rows WHERE flow_type = 'MaliciousFlow' GROUP BY src, dst, bin

-- What every rule reads: the view of design/kql/flow_view.kql over the stored records, one row per tuple. Times are whole
-- microseconds since 1970, because every bin is then plain arithmetic. NULL where KQL has null.
SELECT
    CAST("time" AS BIGINT) AS at,
    "sourceIPAddress" AS src,
    "destinationIPAddress" AS dst,
    "sourceTransportPort" AS sport,
    "destinationTransportPort" AS dport,
    "protocolIdentifier" AS protocol,
    CASE "protocolIdentifier" WHEN 6 THEN 'TCP' WHEN 17 THEN 'UDP' WHEN 1 THEN 'ICMP' ELSE CAST("protocolIdentifier" AS VARCHAR) END AS proto,
    "networkDirection" AS dir,
    CASE "networkDirection" WHEN 'Inbound' THEN 'In' WHEN 'Outbound' THEN 'Out' ELSE "networkDirection" END AS way,
    "action" AS action,
    "octetDeltaCount" AS bytes_ab,
    "reverseOctetDeltaCount" AS bytes_ba,
    "eventCount" AS events,
    "observer" AS observer,
    "flowType" AS flow_type,
    -- A flow log names no machines: there the address stands for it. Traffic Analytics names them where there are any.
    CASE
        WHEN "flowOrigin" IN ('TaNsg', 'TaVnet') THEN split_part("sourceVm", '/', 2)
        ELSE "sourceIPAddress"
    END AS vm,
    -- ipv4_is_private(): null for IPv6 and for a blank address.
    CASE
        WHEN "sourceIPAddress" IS NULL OR "sourceIPAddress" LIKE '%:%' THEN NULL
        ELSE regexp_like("sourceIPAddress", '^(10\.|192\.168\.|172\.(1[6-9]|2[0-9]|3[01])\.)')
    END AS src_private,
    CASE
        WHEN "destinationIPAddress" IS NULL OR "destinationIPAddress" LIKE '%:%' THEN NULL
        ELSE regexp_like("destinationIPAddress", '^(10\.|192\.168\.|172\.(1[6-9]|2[0-9]|3[01])\.)')
    END AS dst_private
FROM flows

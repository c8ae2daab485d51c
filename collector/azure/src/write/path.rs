//! The paths of blobs, as Azure lays them out.

use spanwatch_common::time::Timestamp;

/// `…/y=2026/m=11/d=21/h=10/m=00/macAddress=112233445566/PT1H.json` under `container` and `key=id`.
///
/// The id comes from files: nothing in it can lead out of the directory that the path is taken to be relative to.
pub(crate) fn hourly(container: &str, key: &str, id: &str, hour: Timestamp, mac: &str) -> String {
    let date = hour.to_string();
    let part = |range| date.get(range).unwrap_or_default();
    let (year, month, day, hour) = (part(0..4), part(5..7), part(8..10), part(11..13));
    let id = harmless(id);
    format!("{container}/{key}=/{id}/y={year}/m={month}/d={day}/h={hour}/m=00/macAddress={mac}/PT1H.json")
}

/// The id in upper case, as Azure has it in paths, every part of it a plain name.
fn harmless(id: &str) -> String {
    /// A directory's name on common file systems has at most 255 bytes.
    const PART_MAX: usize = 200;
    let parts = id.split(['/', '\\']).filter(|part| !part.is_empty() && !part.bytes().all(|byte| byte == b'.'));
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-()".contains(c) { c.to_ascii_uppercase() } else { '_' };
    let parts: Vec<String> = parts.map(|part| part.chars().take(PART_MAX).map(plain).collect()).collect();
    if parts.is_empty() { "UNNAMED".to_owned() } else { parts.join("/") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_lies_where_azure_puts_it() {
        let id = "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/rg/providers/Microsoft.Network/networkSecurityGroups/nsg";
        assert_eq!(
            hourly(
                "insights-logs-networksecuritygroupflowevent",
                "resourceId",
                id,
                Timestamp::from_secs(1_795_255_200),
                "AABBCCDDEEFF"
            ),
            "insights-logs-networksecuritygroupflowevent/resourceId=/SUBSCRIPTIONS/00000000-0000-0000-0000-000000000000/RESOURCEGROUPS/RG/\
             PROVIDERS/MICROSOFT.NETWORK/NETWORKSECURITYGROUPS/NSG/y=2026/m=11/d=21/h=10/m=00/macAddress=AABBCCDDEEFF/PT1H.json"
        );
    }

    #[test]
    fn no_id_leads_out_of_the_directory() {
        assert_eq!(harmless("/../..//etc\\..\\pass wd/./C:"), "ETC/PASS_WD/C_");
        assert_eq!(harmless(".."), "UNNAMED");
    }
}

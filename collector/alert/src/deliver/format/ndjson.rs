//! Our own line, as in the alert file.

use crate::Alert;

/// `alert` as one JSON object.
pub fn line(alert: &Alert) -> String {
    // Strings, numbers and lists of them: JSON has words for all of it. NaN becomes null.
    serde_json::to_string(alert).unwrap_or_default()
}

//! placeholder while the workspace is laid out
#[test]
fn builds() {}

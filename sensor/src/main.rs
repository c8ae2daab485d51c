//! doorway
fn main() {}
